"""Distances between few samples and few real images, told beside what real images would get.

With fewer images than features a covariance is singular, and a Fréchet distance grows as sets
shrink, equal distributions included. So both sets have one size, and half of the real images stands
in for the samples once: its distance to the other half is the floor, with the same bias. The kernel
distance has no bias; its floor scatters around 0.
"""

import numpy as np

from imgtx_jax.metrics import validate as feature_checks
from imgtx_jax.metrics.frechet import Moments, frechet_distance
from imgtx_jax.metrics.kid import squared_mmd
from imgtx_jax.metrics.precision_recall import precision_recall

NEIGHBOURS = 3
SPLITS = 8
_LEAST = 2  # images of a covariance
_LEAST_NEIGHBOURS = 6  # images of precision_recall, whose density asks for a fifth neighbour


def compare_with_halves(samples, real, *, splits=SPLITS, seed=0):
  """Samples [n, D] against halves of real images' features [m, D], the mean of random splits.

  Returns {"size", "samples", "real"}: the images of each set, min(n, m // 2), and two dicts of
  figures: of the samples against a half, and of the other half against it. frechet; kernel, with
  kernel_deviation over the splits; precision and recall (None with too few images). None in place
  of it all where a set would have under 2 images.
  """
  samples, real = feature_checks.check_pair(samples, real)
  size = min(len(samples), len(real) // 2)
  if size < _LEAST:
    return None
  draw = np.random.default_rng(seed)
  found = {"samples": [], "real": []}
  for _ in range(splits):
    halves = real[draw.permutation(len(real))[: 2 * size]]
    ours = samples[draw.permutation(len(samples))[:size]]
    found["samples"].append(_distances(ours, halves[:size]))
    found["real"].append(_distances(halves[size:], halves[:size]))
  return {"size": size} | {name: _average(rows) for name, rows in found.items()}


def frechet_of_features(x, y):
  """Fréchet distance of features x [n, D] and y [m, D]; no root of a D × D matrix where n and m are
  under D."""
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
  figures = {
    "frechet": frechet_of_features(samples, reference),
    "kernel": squared_mmd(samples, reference),
    "precision": None,
    "recall": None,
  }
  if len(samples) >= _LEAST_NEIGHBOURS:
    found = precision_recall(samples, reference, neighbours=NEIGHBOURS)
    figures |= {name: found[name] for name in ("precision", "recall")}
  return figures


def _average(rows):
  means = {
    name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))
    for name in rows[0]
  }
  return means | {"kernel_deviation": float(np.std([row["kernel"] for row in rows]))}
