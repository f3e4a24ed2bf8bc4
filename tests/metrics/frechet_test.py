"""Fréchet distance: against the reference implementation's, closed forms, and streaming."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.metrics.frechet import Moments, frechet_distance


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def gather(features, batch=64):
  moments = Moments()
  for start in range(0, len(features), batch):
    moments.add(features[start : start + batch])
  return moments


def distance(x, y):
  first, second = gather(x), gather(y)
  return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def test_parity(parity):
  manifest, recorded, _ = parity("metrics")
  found = distance(recorded["features_1"], recorded["features_2"])
  np.testing.assert_allclose(found, manifest["expected"]["fid"], rtol=1e-4)


def test_moments_by_numpy():
  x = 5 + normal(50, 6)
  moments = gather(x)
  assert moments.count == 50
  np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(
    moments.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12
  )


def test_batches_do_not_matter():
  x = 5 + normal(200, 6)
  seven, all_at_once = gather(x, 7), gather(x, 64)
  np.testing.assert_allclose(seven.mean, all_at_once.mean, rtol=1e-13)
  np.testing.assert_allclose(seven.covariance, all_at_once.covariance, rtol=1e-9, atol=1e-12)


def test_mask_leaves_rows_out():
  x = normal(20, 4)
  padded = np.concatenate([x[:10], np.full((3, 4), np.nan, np.float32), x[10:]])
  mask = np.r_[np.ones(10), np.zeros(3), np.ones(10)].astype(np.float32)
  moments, plain = Moments().add(padded, mask), gather(x)
  assert moments.count == 20
  np.testing.assert_allclose(moments.covariance, plain.covariance, rtol=1e-12, atol=1e-14)
  assert Moments().add(padded, np.zeros(23)).count == 0


def test_merging_processes():
  x = normal(60, 4)
  parts = [gather(x[:13]), Moments(), gather(x[13:40]), gather(x[40:])]
  merged = Moments()
  for part in parts:
    merged.merge(part)
  assert merged.count == 60
  np.testing.assert_allclose(merged.covariance, gather(x).covariance, rtol=1e-12, atol=1e-14)
  before = gather(x[:13])
  assert parts[0].count == 13
  np.testing.assert_array_equal(parts[0].outer, before.outer)  # merging leaves the parts alone
  with pytest.raises(UserError, match="5 features.* has 4"):
    merged.merge(gather(normal(3, 5)))


def test_equal_sets_are_0_apart():
  x = normal(200, 16)
  assert distance(x, x) < 1e-12
  few = normal(5, 16)  # a singular covariance
  assert distance(few, few) < 1e-12
  assert distance(few, np.zeros_like(few)) > 1.0


def test_a_shift_gives_its_squared_length():
  x, shift = normal(100, 8).astype(np.float64), np.linspace(-1, 2, 8)
  np.testing.assert_allclose(distance(x, x + shift), np.sum(shift**2), rtol=1e-10)
  few = normal(4, 8).astype(np.float64)
  np.testing.assert_allclose(distance(few, few + shift), np.sum(shift**2), rtol=1e-10)


def test_gaussians_that_do_not_commute():
  # In two dimensions tr (AB)^½ = √(tr AB + 2 √det AB).
  a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
  root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
  expected = 1.0 + np.trace(a) + np.trace(b) - 2 * root
  found = frechet_distance(np.zeros(2), a, np.array([0.6, 0.8]), b)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  np.testing.assert_allclose(frechet_distance([0.6, 0.8], b, [0, 0], a), expected, rtol=1e-12)


def test_disjoint_singular_covariances():
  found = frechet_distance(np.zeros(3), np.diag([4.0, 0, 0]), np.zeros(3), np.diag([0, 9.0, 0]))
  np.testing.assert_allclose(found, 13.0, rtol=1e-12)


def test_statistics_in_float32_are_taken():
  x = normal(10, 16)  # rank 9: rounding pushes eigenvalues below 0
  moments = gather(x)
  stored = (moments.mean.astype(np.float32), moments.covariance.astype(np.float32))
  assert frechet_distance(*stored, moments.mean, moments.covariance) < 1e-4


@pytest.mark.parametrize(
  "mean, covariance, line",
  [
    (np.zeros(3), np.eye(4), r"second statistics: mean \(3,\) and covariance \(4, 4\)"),
    (np.zeros((1, 2)), np.eye(2), "second statistics: mean"),
    (np.zeros(2), np.diag([1.0, np.nan]), "second statistics hold NaN"),
    (np.zeros(2), np.diag([1.0, -1.0]), "no covariance .*least eigenvalue of -1 .*anew"),
    (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "no covariance .*asymmetry of 0.5"),
    (np.zeros(3), np.eye(3), "first statistics: 2 features.*second has 3"),
  ],
)
def test_what_is_no_statistics(mean, covariance, line):
  with pytest.raises(UserError, match=line):
    frechet_distance(np.zeros(2), np.eye(2), mean, covariance)


def test_moments_of_too_few():
  with pytest.raises(UserError, match="0 images.*give more"):
    _ = Moments().mean
  with pytest.raises(UserError, match="1 images.*covariance 2.*give more"):
    _ = Moments().add(normal(1, 3)).covariance
