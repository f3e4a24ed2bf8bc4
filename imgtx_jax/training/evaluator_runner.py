"""A stage's evaluators over held-out images: compiled once, summed over devices and processes."""

import jax
import numpy as np

from imgtx_jax import rng
from imgtx_jax.data import pipeline


class EvaluatorRunner:
  """Computes the figures of a stage's evaluators on a source of images.

  companions: {name: Companion}, as the stage's `companions` gives them.
  """

  def __init__(self, stage, config, source, parallel, companions=None):
    self.config, self.source, self.parallel = config, source, parallel
    self.companions = companions
    self.batch_size = stage.batch_size
    self.evaluators = {
      name: (parallel.compile_sums(e.sums), e) for name, e in stage.evaluators().items()
    }

  def figures(self, state, root, limit=None):
    """Returns {"evaluator/figure": value}.

    Args:
      state: a placed state.
      root: the run's random key.
      limit: number of images at most, spread evenly over the source; None for all. An evaluator's
        own limit takes precedence.
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
  """Returns the totals with the sums of one more batch added, in float64; see base.Evaluator.

  totals: None before the first batch. Arrays under "rows" are appended as they are.
  """
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
