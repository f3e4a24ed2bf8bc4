"""Fréchet distance between two sets of features (FID, arXiv:1706.08500), float64 on the host."""

import dataclasses

import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import validate as feature_checks

# Largest rounding error of a covariance's eigenvalues, relative to the largest eigenvalue.
# Published statistics are often stored in float32.
_ROUNDING = 1e-3
# And relative to the squares of the means, where there is next to no variance: a collapsed model.
_ROUNDING_OF_MEANS = 1e-6


@dataclasses.dataclass
class Moments:
  """Accumulates the mean and covariance of features over batches, in constant memory.

  count: number of features. total: float64 [D], their sum. outer: float64 [D, D], the sum of their
  outer products. Products of float32 features are exact in float64, so that the order and size of
  batches change only the last digits.
  """

  count: int = 0
  total: np.ndarray | None = None
  outer: np.ndarray | None = None

  def add(self, features, mask=None):
    """Adds features [n, D], or those whose mask [n] is not 0. Returns self.

    Raises UserError if they hold NaN or infinity, or if D differs from before.
    """
    features = np.asarray(features)
    if mask is not None:
      features = features[np.asarray(mask) != 0]
    features = feature_checks.check("features", features, minimum=0).astype(np.float64)
    return self.merge(Moments(len(features), features.sum(axis=0), features.T @ features))

  def merge(self, other):
    """Adds the sums of other Moments, for example another process's. Returns self.

    Raises UserError if D differs.
    """
    if other.total is None:
      return self
    if self.total is None:
      self.total, self.outer = np.zeros_like(other.total), np.zeros_like(other.outer)
    feature_checks.check_width("features", len(other.total), "what came before", len(self.total))
    self.count += int(other.count)
    self.total += other.total
    self.outer += other.outer
    return self

  @property
  def mean(self):
    """Returns the mean [D]; raises UserError before the first feature."""
    self._need(1)
    return self.total / self.count

  @property
  def covariance(self):
    """Returns the unbiased covariance [D, D]; raises UserError before the second feature."""
    self._need(2)
    scatter = self.outer - np.outer(self.total, self.total) / self.count
    return scatter / (self.count - 1)

  def _need(self, minimum):
    if self.count < minimum:
      raise UserError(
        f"{self.count} images, but a mean needs at least 1 and a covariance 2: give more images"
      )


def frechet_distance(mean1, cov1, mean2, cov2):
  """Returns ‖mean1 − mean2‖² + tr(cov1 + cov2 − 2 (cov1 cov2)^½); float (arXiv:1706.08500).

  With cov = A Aᵀ, tr (cov1 cov2)^½ is the sum of the singular values of A1ᵀ A2. This is exact for
  singular covariances too (fewer images than D), where the root of a product would amplify
  rounding errors.

  Args:
    mean1, mean2: [D].
    cov1, cov2: [D, D].

  Raises:
    UserError: if shapes do not match, values are not finite, or a matrix is not a covariance.
  """
  mean1, root1 = _check_statistics("first", mean1, cov1)
  mean2, root2 = _check_statistics("second", mean2, cov2)
  feature_checks.check_width("first statistics", len(mean1), "the second", len(mean2))
  shared = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
  distance = np.sum((mean1 - mean2) ** 2) + np.sum(root1**2) + np.sum(root2**2) - 2 * shared
  return max(float(distance), 0.0)  # a squared distance: below 0 is rounding


def _check_statistics(name, mean, covariance):
  """Returns (mean [D], root [D, D]) in float64 with root @ root.T = covariance."""
  mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
  if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
    raise UserError(
      f"{name} statistics: mean {mean.shape} and covariance {covariance.shape} are not [D] and "
      "[D, D]: give those of one set of features"
    )
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise UserError(
      f"{name} statistics hold NaN or infinity; they must be finite: compute them anew"
    )
  values, vectors = np.linalg.eigh(covariance)
  asymmetry = np.abs(covariance - covariance.T).max(initial=0.0)
  scale = np.abs(values).max(initial=0.0)
  tolerance = _ROUNDING * scale + _ROUNDING_OF_MEANS * np.square(mean).max(initial=0.0)
  if values.min(initial=0.0) < -tolerance or asymmetry > tolerance:
    raise UserError(
      f"{name} statistics: no covariance has a least eigenvalue of {values.min():.3g} (0 or more) "
      f"and an asymmetry of {asymmetry:.3g} (0): compute them anew"
    )
  return mean, vectors * np.sqrt(np.maximum(values, 0.0))
