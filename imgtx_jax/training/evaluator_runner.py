"""A stage's evaluators over held-out images: compiled once, summed over devices and processes."""

import jax
import numpy as np

from imgtx_jax import rng
from imgtx_jax.data import pipeline


class EvaluatorRunner:
  """Computes the figures of a stage's evaluators on the images of a source, and of its companions
  (see stage.Stage.companions)."""

  def __init__(self, stage, config, source, parallel, companions=None):
    self.config, self.source, self.parallel = config, source, parallel
    self.companions = companions
    self.batch_size = stage.batch_size
    self.evaluators = {
      name: (parallel.compile_sums(e.sums), e) for name, e in stage.evaluators().items()
    }

  def figures(self, state, root, limit=None):
    """{"evaluator/figure": value} of a placed state; root: the run's random key.

    limit: at most so many images, spread evenly, None for all; an evaluator's own goes before it.
    """
    found = {}
    for name, (sums_fn, evaluator) in self.evaluators.items():
      totals = None
      for number, batch in enumerate(self._batches(evaluator.limit or limit)):
        key = rng.stream(root, "evaluate", number)  # no two examples share their draws
        sums = jax.device_get(sums_fn(state, self.parallel.put_batch(batch), key))
        totals = add(totals, sums)
      found |= {f"{name}/{key}": value for key, value in evaluator.figures(totals).items()}
    return found

  def _batches(self, limit):
    return pipeline.eval_batches(
      self.source,
      batch_size=self.batch_size,
      image_size=self.config.data.image_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      limit=limit,
      threads=self.config.data.threads,
      companions=self.companions,
    )


def add(totals, sums):
  """The totals (None before the first batch) with one more batch's sums, as Evaluator has them:
  float64, except that what is under "rows" is appended as it is."""
  added = {}
  for name, x in sums.items():
    before = totals and totals[name]
    if name == "rows":
      added[name] = jax.tree.map(
        lambda *parts: np.concatenate(parts), *([before] if totals else []), x
      )
    elif isinstance(x, dict):
      added[name] = add(before, x)
    else:
      x = np.asarray(x, np.float64)
      added[name] = x if totals is None else before + x
  return added
