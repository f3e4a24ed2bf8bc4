"""Fréchet distance between two sets of features (FID, arXiv:1706.08500), float64 on the host."""

import dataclasses

import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import validate as feature_checks

# How far below zero, relative to the largest, rounding may push a covariance's eigenvalues:
# published statistics are often stored in float32.
_ROUNDING = 1e-3


@dataclasses.dataclass
class Moments:
  """Mean and covariance of features, gathered a batch at a time; memory does not grow.

  The three fields are all there is to save: count, total [D] and outer [D, D] (the sum of the outer
  products), float64. Products of float32 features are exact there, so the order and the size of
  batches change the last digits of float64 only.
  """

  count: int = 0
  total: np.ndarray | None = None
  outer: np.ndarray | None = None

  def add(self, features, mask=None):
    """Takes features [n, D] in, or those of them whose mask [n] is not 0. Returns self.

    Raises UserError on NaN or infinity in the rows it takes, and on another width than before.
    """
    features = np.asarray(features)
    if mask is not None:
      features = features[np.asarray(mask) != 0]
    features = feature_checks.check("features", features, least=0).astype(np.float64)
    return self.merge(Moments(len(features), features.sum(axis=0), features.T @ features))

  def merge(self, other):
    """Takes in what another one, say another process's, has gathered. Returns self."""
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
    """Mean [D]; UserError before the first feature."""
    self._need(1)
    return self.total / self.count

  @property
  def covariance(self):
    """Unbiased covariance [D, D]; UserError before the second feature."""
    self._need(2)
    scatter = self.outer - np.outer(self.total, self.total) / self.count
    return scatter / (self.count - 1)

  def _need(self, least):
    if self.count < least:
      raise UserError(
        f"{self.count} images, but a mean needs at least 1 and a covariance 2: give more images"
      )


def frechet_distance(mean1, cov1, mean2, cov2):
  """‖mean1 − mean2‖² + tr(cov1 + cov2 − 2 (cov1 cov2)^½) of means [D] and covariances [D, D].

  With cov = A Aᵀ the last trace is the sum of A1ᵀ A2's singular values, the square roots of the
  eigenvalues of cov1 cov2. They stay exact where covariances are singular (fewer images than D), as
  there is no root of a rounding error. Raises UserError on statistics that are none.
  """
  mean1, root1 = _check_statistics("first", mean1, cov1)
  mean2, root2 = _check_statistics("second", mean2, cov2)
  feature_checks.check_width("first statistics", len(mean1), "the second", len(mean2))
  shared = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
  distance = np.sum((mean1 - mean2) ** 2) + np.sum(root1**2) + np.sum(root2**2) - 2 * shared
  return max(float(distance), 0.0)  # a squared distance: below 0 is rounding


def _check_statistics(name, mean, covariance):
  """(mean [D], root [D, D] with root @ root.T = covariance), float64."""
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
  if values.min(initial=0.0) < -_ROUNDING * scale or asymmetry > _ROUNDING * scale:
    raise UserError(
      f"{name} statistics: no covariance has a least eigenvalue of {values.min():.3g} (0 or more) "
      f"and an asymmetry of {asymmetry:.3g} (0): compute them anew"
    )
  return mean, vectors * np.sqrt(np.maximum(values, 0.0))
