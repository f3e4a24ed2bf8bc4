"""The frozen networks that evaluation measures with, by name, and running them over many images.

A distance is only comparable with others from the same network, weights and resize: each network
carries what must be told with its results.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError, one_of
from imgtx_jax.pretrained import efficientnet_weights, inception_weights
from imgtx_jax.pretrained import lpips_weights as vgg_weights
from imgtx_jax.pretrained.efficientnet import efficientnet_logits, prepare
from imgtx_jax.pretrained.inception import inception_features
from imgtx_jax.pretrained.vgg import vgg16_means


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
  """A frozen network with its weights.

  label: name of a Fréchet distance of its features. resize: how images are resized first.
  weights_sha256: of the file that the weights were published in. smallest: the least side.
  apply: (params, images uint8 [B, H, W, 3]) → {"features": [B, D], …}, pure.
  """

  name: str
  label: str
  resize: str
  weights_sha256: str
  params: Any = dataclasses.field(repr=False)
  apply: Callable = dataclasses.field(repr=False)
  smallest: int = 1


def load(name):
  """Returns the FeatureNetwork of a name; UserError with the command to run if weights are missing.

  vgg16         features [B, 512], the channel means of relu5_3. Its distance is "FD-VGG16".
  inception     features [B, 2048], the last pool (FID, KID, precision and recall); spatial
                [B, 768], torch-fidelity's "768" for sFID: the mean over the 17x17 map after
                Mixed_6e, not ADM's 7 first channels of that block's map (arXiv:2105.05233), whose
                sFID is another metric; logits [B, 1008] without bias (Inception Score). "FID" with
                the published weights, else "FD-Inception".
  efficientnet  features and logits: both [B, 1000], ImageNet's classes in the order of their ids.
  """
  one_of("feature network", name, NETWORKS)
  return NETWORKS[name]()


def _vgg16():
  return FeatureNetwork(
    name="vgg16",
    label="FD-VGG16",
    resize="none",
    weights_sha256=vgg_weights.sha256("vgg"),
    params=vgg_weights.load("vgg")["vgg"],
    apply=_apply_vgg16,
    smallest=16,
  )


def _apply_vgg16(params, images):
  return {"features": vgg16_means(params, images)}


def _inception():
  params, sha256 = inception_weights.load()
  published = sha256.startswith(inception_weights.PUBLISHED)
  return FeatureNetwork(
    name="inception",
    label="FID" if published else "FD-Inception",
    resize="bilinear to 299x299 as in TensorFlow 1 (no half-pixel centres, no antialiasing)",
    weights_sha256=sha256,
    params=params,
    apply=_apply_inception,
  )


def _apply_inception(params, images):
  outputs = inception_features(params, images)
  return {
    "features": outputs["2048"],
    "spatial": outputs["768"],
    "logits": outputs["logits_unbiased"],
  }


def _efficientnet():
  return FeatureNetwork(
    name="efficientnet",
    label="FD-EfficientNet-logits",
    resize="the central 87.5 % of each side to 224x224, cubic with antialiasing",
    weights_sha256=efficientnet_weights.SHA256,
    params=efficientnet_weights.load(),
    apply=_apply_efficientnet,
  )


def _apply_efficientnet(params, images):
  logits = efficientnet_logits(params, prepare(images))
  return {"features": logits, "logits": logits}


NETWORKS = {"vgg16": _vgg16, "inception": _inception, "efficientnet": _efficientnet}


def feature_function(network, batch_size=64):
  """Returns a function uint8 images [n, H, W, 3] → {part: NumPy array [n, …]}.

  One program of one batch size (rounded up to what the local devices divide) serves every call;
  the last batch is filled up with images that are dropped again. Results do not depend on the other
  images of a batch. Every process works alone, on its own devices.
  """
  run = sharding.map_local(network.apply, network.params)

  def extract(images):
    images = np.asarray(images)
    _check(network, images)
    return sharding.in_batches(run, images, batch_size)

  return extract


def _check(network, images):
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
    raise UserError(
      f"{network.name} was given {images.dtype} {list(images.shape)}; "
      "give uint8 images [n, height, width, 3], at least one"
    )
  if min(images.shape[1:3]) < network.smallest:
    raise UserError(
      f"{network.name} was given images of {images.shape[1]}x{images.shape[2]}; both sides must be "
      f"at least {network.smallest} pixels"
    )
