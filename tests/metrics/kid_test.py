"""Kernel distance: against the reference implementation's, and by hand."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.metrics.kid import kernel_distance, squared_mmd


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def test_parity(parity):
  manifest, recorded, _ = parity("metrics")
  x, y = recorded["features_1"][:1000], recorded["features_2"][:1000]
  expected = manifest["expected"]["kid_full_first1000"]
  np.testing.assert_allclose(squared_mmd(x, y), expected, rtol=1e-4)
  # Subsets of all there is are that block, in another order.
  found = kernel_distance(x, y, subsets=2, subset_size=1000)
  np.testing.assert_allclose(found, [expected, 0.0], rtol=1e-4, atol=1e-12)


def test_squared_mmd_by_hand():
  x, y = np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([[0.0, 0.0], [-1.0, 1.0], [0.0, 2.0]])
  # Kernels (x·y / 2 + 1)³: 8 in x; 1, 1, 8 in y; across 1, 1, 8 and 1, 0, 1.
  np.testing.assert_allclose(squared_mmd(x, y), 8 + 10 / 3 - 2 * 12 / 6, rtol=1e-12)


def test_like_sets_are_near_0_and_others_are_not():
  x, y = normal(300, 8), normal(300, 8, seed=1)
  assert abs(squared_mmd(x, y)) < 0.05 < squared_mmd(x, y + 1.0)
  np.testing.assert_allclose(squared_mmd(x, y + 1.0), squared_mmd(y + 1.0, x), rtol=1e-9)
  # Unbiased: of one set with itself the diagonal is left out of one part only.
  assert -0.1 < squared_mmd(x, x) < 0.0


def test_the_seed_chooses_the_subsets():
  x, y = normal(60, 4), normal(50, 4, seed=1)
  first = kernel_distance(x, y, subsets=5, subset_size=20, seed=1)
  assert first == kernel_distance(x, y, subsets=5, subset_size=20, seed=1)
  assert first != kernel_distance(x, y, subsets=5, subset_size=20, seed=2)
  draw, values = np.random.RandomState(1), []
  for _ in range(5):
    a = x[draw.choice(60, 20, replace=False)]
    values.append(squared_mmd(a, y[draw.choice(50, 20, replace=False)]))
  np.testing.assert_allclose(first, [np.mean(values), np.std(values)], rtol=1e-12)


def test_subsets_that_cannot_be_drawn():
  with pytest.raises(UserError, match="reference: 9 images.*subset_size 10.*at least 10"):
    kernel_distance(normal(10, 3), normal(9, 3), subset_size=10)
  with pytest.raises(UserError, match="0 subsets of 10"):
    kernel_distance(normal(10, 3), normal(10, 3), subsets=0, subset_size=10)
  with pytest.raises(UserError, match="subsets of 1 images"):
    kernel_distance(normal(10, 3), normal(10, 3), subset_size=1)
