"""Kernel Inception Distance of two sets of features (arXiv:1801.01401), float64 on the host."""

import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import validate as feature_checks


def squared_mmd(x, y):
  """Returns the unbiased squared maximum mean discrepancy of features x [n, D], y [m, D]; float.

  The kernel is (x·y / D + 1)³. For equal distributions the estimate scatters around 0 and may be
  negative. Raises UserError for unsuitable features (see validate.check_pair).
  """
  x, y = feature_checks.check_pair(x, y, 2, "the kernel distance")
  x, y = x.astype(np.float64), y.astype(np.float64)
  return float(_mean_of_others(x) + _mean_of_others(y) - 2 * _kernel(x, y).mean())


def kernel_distance(samples, reference, *, subsets=100, subset_size=1000, seed=2020):
  """Returns (mean, standard deviation) of squared_mmd over random subsets.

  The subsets are those of torch-fidelity with the same seed.

  Args:
    samples: features [n, D].
    reference: features [m, D].
    subsets: number of subsets.
    subset_size: rows of each subset, at most min(n, m).
    seed: of NumPy's RandomState.

  Raises:
    UserError: if a set is too small, or features are unsuitable (see validate.check_pair).
  """
  if subsets < 1 or subset_size < 2:
    raise UserError(
      f"kernel distance: {subsets} subsets of {subset_size} images; "
      "ask for 1 or more subsets of 2 or more"
    )
  use = f"the kernel distance with subset_size {subset_size}"
  samples, reference = feature_checks.check_pair(samples, reference, subset_size, use)
  draw = np.random.RandomState(seed)
  values = []
  for _ in range(subsets):
    x = samples[draw.choice(len(samples), subset_size, replace=False)]
    y = reference[draw.choice(len(reference), subset_size, replace=False)]
    values.append(squared_mmd(x, y))
  return float(np.mean(values)), float(np.std(values))


def _kernel(x, y):
  """Returns the kernel matrix [n, m] of x [n, D] and y [m, D]."""
  return (x @ y.T / x.shape[1] + 1.0) ** 3


def _mean_of_others(x):
  """Returns the mean kernel over pairs of different rows of x [n, D]."""
  kernel = _kernel(x, x)
  return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))
