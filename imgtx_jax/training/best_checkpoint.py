"""The best checkpoint of a stage, by a held-out figure.

config.best_metric names figures, separated by commas: "samples/k64_fd_vgg16, validation/psnr". A
stage uses the first one that it has, or keeps no best. Every checkpoint stores the best so far, so
that a resumed run keeps the same one as an unbroken run.
"""

import math

import jax
import numpy as np

from imgtx_jax.errors import UserError

# The direction of a figure by the end of its name; the first that fits counts.
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
  """The best evaluation of a stage so far: its step and value, None before the first.

  metric: name of the figure; "" for a stage that keeps no best. mode: "min" or "max".
  """

  def __init__(self, metric="", mode=""):
    self.metric, self.mode = metric, mode
    self.step = self.value = None

  def look(self, step, figures):
    """Updates the best by the figures {name: value} after `step`; returns whether they are it now.

    Of equal values the first is the best. A value that is not finite never is.
    """
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
    """Returns a dict for a checkpoint's meta and the summary, or None without a best."""
    if self.step is None:
      return None
    return {"metric": self.metric, "mode": self.mode, "step": self.step, "value": self.value}

  def restore(self, meta):
    """Sets the best to what `meta` returned."""
    self.step, self.value = (meta["step"], meta["value"]) if meta else (None, None)


def choose(config, stages):
  """Returns {stage name: its Best}; stages: the config's, built, in order.

  Nothing is computed: the evaluators are traced, which takes seconds.

  Raises:
    UserError: if a name in config.best_metric is no figure of any stage, or has no known direction.
  """
  if not _wanted(config):
    return {stage.name: Best() for stage in stages}
  return choose_among(config, figure_names(config, stages))


def choose_among(config, known):
  """Does what `choose` does; known: {stage name: names of its figures}."""
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
  """Returns {stage name: names of its held-out figures} for the config's stages, in order."""
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
  """Returns "min" or "max", whichever is better of a figure. mode: "auto" decides by its name, and
  raises UserError where the name does not tell."""
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
  """Returns (names of a stage's held-out figures, the shapes of its results for later stages)."""
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
