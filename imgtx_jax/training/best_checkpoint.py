"""Which checkpoint of a stage is its best: by which held-out figure, and which way is better.

config.best_metric names figures between commas, "samples/k64_fd_vgg16, validation/psnr"; a stage
goes by the first of them that it has, and by none if it has none. The record of the best is part of
every checkpoint, so that a resumed run keeps the same one as an unbroken run.
"""

import math

import jax
import numpy as np

from imgtx_jax.errors import UserError

# How a figure's name ends, and which way it is better; of two that fit, the first counts.
_BETTER = (
  ("diversity_lpips", "max"),
  ("diversity_rms", "max"),
  ("fd_vgg16", "min"),
  ("kid_vgg16", "min"),
  ("bits_per_code", "min"),
  ("loss", "min"),
  ("lpips", "min"),
  ("psnr", "max"),
  ("ssim", "max"),
  ("accuracy", "max"),
  ("accuracy_k0", "max"),
  ("codes_used", "max"),
  ("perplexity", "max"),
)
_EXAMPLES = 2  # of the batch that names are found with


class Best:
  """The best evaluation of a stage so far: step and value, None before the first.

  metric: the figure's name; "" for a stage that keeps no best. mode: "min" or "max".
  """

  def __init__(self, metric="", mode=""):
    self.metric, self.mode = metric, mode
    self.step = self.value = None

  def look(self, step, figures):
    """Takes in the figures {name: value} after `step`; whether they are the best so far. Of equal
    ones the first is; a value that is not finite is none."""
    value = figures.get(self.metric, math.nan)
    if not math.isfinite(value):
      return False
    if self.value is not None and not (
      value < self.value if self.mode == "min" else value > self.value
    ):
      return False
    self.step, self.value = int(step), float(value)
    return True

  def meta(self):
    """For a checkpoint's meta and the summary; None where there is no best."""
    if self.step is None:
      return None
    return {"metric": self.metric, "mode": self.mode, "step": self.step, "value": self.value}

  def restore(self, meta):
    """Takes over what `meta` gave, or None."""
    self.step, self.value = (meta["step"], meta["value"]) if meta else (None, None)


def choose(config, stages):
  """{stage's name: its Best}, of the config's built stages in order.

  UserError where a name in config.best_metric is no figure of any stage, or has no known direction.
  Nothing is computed: the evaluators are traced, which takes seconds.
  """
  if not _wanted(config):
    return {stage.name: Best() for stage in stages}
  return choose_among(config, figure_names(config, stages))


def choose_among(config, known):
  """choose of {stage's name: the names of its figures}."""
  wanted = _wanted(config)
  for name in wanted:
    if not any(name in names for names in known.values()):
      listed = "; ".join(f"{stage}: {', '.join(names)}" for stage, names in known.items())
      raise UserError(f"config.best_metric={name!r} is no figure of these stages. {listed}")
  chosen = {}
  for stage, names in known.items():
    metric = next((name for name in wanted if name in names), "")
    chosen[stage] = Best(metric, direction(metric, config.best_mode)) if metric else Best()
  return chosen


def figure_names(config, stages):
  """{stage's name: the names of its held-out figures} of the config's stages, in order."""
  known, restored = {}, {}
  for stage in stages:
    if missing := set(stage.sources) - set(restored):
      raise UserError(
        f"config.best_metric needs {', '.join(sorted(missing))} before {stage.name} in "
        f"config.stages={tuple(s.name for s in stages)}; name it there, or leave best_metric empty"
      )
    known[stage.name], restored[stage.name] = _figures(stage, config, restored)
  return known


def _wanted(config):
  return [name.strip() for name in config.best_metric.split(",") if name.strip()]


def direction(metric, mode="auto"):
  """Which is better of a figure, "min" or "max". mode: "auto" goes by its name, UserError where it
  does not tell."""
  if mode != "auto":
    return mode
  for ending, better in _BETTER:
    if metric.endswith(ending):
      return better
  raise UserError(
    f"config.best_metric={metric!r}: its name does not tell whether less or more is better; set "
    "config.best_mode to 'min' or 'max'"
  )


def _figures(stage, config, restored):
  """(names of all held-out figures of a stage, the shapes that it leaves to later ones)."""
  size = config.data.image_size
  shape = (_EXAMPLES, size, size, 3)
  batch = {
    "image": jax.ShapeDtypeStruct(shape, np.uint8),
    "label": jax.ShapeDtypeStruct(shape[:1], np.int32),
    "mask": jax.ShapeDtypeStruct(shape[:1], np.float32),
  }
  batch |= {name: batch["image"] for name in stage.companions()}
  evaluators = stage.evaluators()

  def run(key, restored, batch):
    state = stage.init(key, shape, restored)
    left = {"params": state.params, "ema": state.ema, "variables": state.variables}
    return left, {n: e.sums(state, batch, key, axis=None) for n, e in evaluators.items()}

  key = jax.eval_shape(lambda: jax.random.key(0))
  left, sums = jax.eval_shape(run, key, restored, batch)
  totals = jax.tree.map(lambda x: np.ones(x.shape), sums)
  names = [f"{n}/{name}" for n, e in evaluators.items() for name in e.figures(totals[n])]
  return names, left
