"""Distances between few samples and few real images, with the distance of real images as floor.

With fewer images than features a covariance is singular, and the Fréchet distance grows as sets
shrink, even for equal distributions. Therefore all sets have the same size, and the distance
between two halves of the real images is reported as a floor with the same bias. The kernel distance
has no bias; its floor scatters around 0.
"""

import numpy as np

from imgtx_jax.metrics import validate as feature_checks
from imgtx_jax.metrics.frechet import Moments, frechet_distance
from imgtx_jax.metrics.kid import squared_mmd
from imgtx_jax.metrics.precision_recall import precision_recall

NEIGHBOURS = 3
SPLITS = 8
_MIN_IMAGES = 2  # for a covariance
_MIN_IMAGES_NEIGHBOURS = 6  # for precision_recall, whose density needs a fifth neighbour


def compare_with_halves(samples, real, *, splits=SPLITS, seed=0):
  """Compares samples with random halves of the real images; means over splits.

  Args:
    samples: features [n, D].
    real: features [m, D] of real images.
    splits: number of random splits.
    seed: of the splits.

  Returns:
    {"size", "samples", "real"}, or None if a set would have under 2 images. size: images per set,
    min(n, m // 2). samples: dict of the distances of samples to one half. real: the same of the
    other half. The distances are frechet, kernel, kernel_deviation (over splits), precision and
    recall (None with too few images).

  Raises:
    UserError: for unsuitable features (see validate.check_pair).
  """
  samples, real = feature_checks.check_pair(samples, real)
  size = min(len(samples), len(real) // 2)
  if size < _MIN_IMAGES:
    return None
  draw = np.random.default_rng(seed)
  distances = {"samples": [], "real": []}
  for _ in range(splits):
    halves = real[draw.permutation(len(real))[: 2 * size]]
    ours = samples[draw.permutation(len(samples))[:size]]
    distances["samples"].append(_distances(ours, halves[:size]))
    distances["real"].append(_distances(halves[size:], halves[:size]))
  return {"size": size} | {name: _average(rows) for name, rows in distances.items()}


def frechet_of_features(x, y):
  """Returns the Fréchet distance of features x [n, D] and y [m, D]; float.

  If n and m are less than D it decomposes no D × D matrix.
  """
  n, m, width = len(x), len(y), x.shape[1]
  if max(n, m) >= width:
    ours, theirs = Moments().add(x), Moments().add(y)
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
  x, y = x.astype(np.float64), y.astype(np.float64)
  mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
  # Covariances are A Aᵀ with A [D, n]: see frechet_distance for the trace.
  root_x, root_y = (x - mean_x).T / np.sqrt(n - 1), (y - mean_y).T / np.sqrt(m - 1)
  shared = np.linalg.svd(root_x.T @ root_y, compute_uv=False).sum()
  spread = np.sum(root_x**2) + np.sum(root_y**2)
  return max(float(np.sum((mean_x - mean_y) ** 2) + spread - 2 * shared), 0.0)


def _distances(samples, reference):
  """Returns the dict of distances between samples [n, D] and reference [n, D]."""
  distances = {
    "frechet": frechet_of_features(samples, reference),
    "kernel": squared_mmd(samples, reference),
    "precision": None,
    "recall": None,
  }
  if len(samples) >= _MIN_IMAGES_NEIGHBOURS:
    neighbour_metrics = precision_recall(samples, reference, neighbours=NEIGHBOURS)
    distances |= {name: neighbour_metrics[name] for name in ("precision", "recall")}
  return distances


def _average(rows):
  """Returns the means of a list of dicts, and the kernel distance's standard deviation."""
  means = {
    name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))
    for name in rows[0]
  }
  return means | {"kernel_deviation": float(np.std([row["kernel"] for row in rows]))}
