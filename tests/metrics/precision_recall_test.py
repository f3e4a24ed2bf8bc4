"""Precision, recall, density and coverage: the reference implementation's, by hand, brute force."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import precision_recall as prc
from imgtx_jax.metrics.precision_recall import precision_recall


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def brute_force(samples, reference, k, density_k):
  """All at once in float64, by differences."""
  samples, reference = samples.astype(np.float64), reference.astype(np.float64)

  def distances(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(axis=-1)

  def radii(x, k):
    return np.sort(distances(x, x), axis=1)[:, k]  # after itself

  across = distances(samples, reference)
  within = across < radii(reference, density_k)
  return {
    "precision": (across <= radii(reference, k)).any(axis=1).mean(),
    "recall": (across <= radii(samples, k)[:, None]).any(axis=0).mean(),
    "density": within.sum(axis=1).mean() / density_k,
    "coverage": within.any(axis=0).mean(),
  }


def check_against_brute_force(samples, reference, k=3, density_k=5):
  found = precision_recall(samples, reference, neighbours=k, density_neighbours=density_k)
  for name, value in brute_force(samples, reference, k, density_k).items():
    assert found[name] == pytest.approx(value, abs=1e-12), name
  return found


def test_parity(parity):
  manifest, recorded, _ = parity("metrics")
  found = precision_recall(recorded["features_1"], recorded["features_2"], neighbours=3)
  for name in ("precision", "recall", "f_score"):
    np.testing.assert_allclose(found[name], manifest["expected"][name], rtol=1e-6)


def test_by_hand():
  # References at 0, 1, 3, 7, samples at 0.5, 5, 20, one neighbour. The references' balls reach
  # 1, 1, 2, 4; the samples' 4.5, 4.5, 15.
  reference = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)
  samples = np.array([[0.5], [5.0], [20.0]], np.float32)
  found = precision_recall(samples, reference, neighbours=1, density_neighbours=1)
  # 0.5 is in the balls of 0 and 1; 5 in that of 7, and on the surface of that of 3; 20 in none.
  assert found["precision"] == pytest.approx(2 / 3)
  assert found["recall"] == 1.0  # 0, 1, 3 around 0.5; 7 around 5
  assert found["f_score"] == pytest.approx(0.8)
  assert found["density"] == pytest.approx((2 + 1 + 0) / 3)  # the surface is not in
  assert found["coverage"] == pytest.approx(3 / 4)  # 3's nearest sample lies on the surface
  found = precision_recall(samples, reference, neighbours=1, density_neighbours=2)
  # With two neighbours the references' balls reach 3, 2, 3, 6: 0.5 is in three, and 5 in two.
  assert found["density"] == pytest.approx((3 + 2 + 0) / 3 / 2)
  assert found["coverage"] == 1.0


def test_brute_force_agrees():
  found = check_against_brute_force(normal(60, 5), 1.3 * normal(45, 5, seed=1) + 0.3)
  assert 0 < found["recall"] < 1 and 0 < found["coverage"] < 1
  check_against_brute_force(normal(9, 4), normal(40, 4, seed=1), k=4, density_k=2)


def test_blocks_do_not_matter(monkeypatch):
  samples, reference = normal(60, 5), normal(45, 5, seed=1)
  whole = precision_recall(samples, reference)
  for rows in (7, 16, 1):  # 7 and 16 do not divide: the last block overlaps the one before
    monkeypatch.setattr(prc, "BLOCK", rows * 45)
    monkeypatch.setattr(prc, "_CHUNK", 40)
    assert precision_recall(samples, reference) == whole


def test_equal_sets_are_perfect():
  x = 100 + normal(80, 12)  # every radius is the distance of a pair: all too close to call
  found = precision_recall(x, x, density_neighbours=4)
  assert found == dict(precision=1.0, recall=1.0, f_score=1.0, density=1.0, coverage=1.0)


def test_order_and_scale_do_not_matter():
  samples, reference = normal(60, 5), normal(45, 5, seed=1)
  found = precision_recall(samples, reference)
  turned = precision_recall(samples[::-1], reference[::-1])
  assert turned == pytest.approx(found, abs=1e-12)
  assert precision_recall(1024 * samples, 1024 * reference) == pytest.approx(found, abs=1e-12)


def test_a_far_away_and_narrow_cloud():
  # Squared norms of 1e6 and squared distances of 1e-3: uncentred float32 would see noise.
  samples, reference = 300 + 0.01 * normal(50, 12), 300 + 0.01 * normal(40, 12, seed=1)
  found = check_against_brute_force(samples, reference)
  assert 0 < found["precision"] and 0 < found["recall"]


def test_duplicates_lie_at_distance_0():
  one = normal(1, 12)
  samples = np.repeat(one, 20, axis=0)  # the model has collapsed: balls of radius 0
  reference = np.concatenate([one, normal(30, 12, seed=1)])
  found = check_against_brute_force(samples, reference)
  assert found["precision"] == 1.0
  assert found["recall"] == pytest.approx(1 / 31)
  # And both sets are all one image, but for one reference.
  check_against_brute_force(samples, np.concatenate([samples, normal(1, 12, seed=2)]))


def test_lattices_are_all_ties():
  lattice = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3).astype(np.float32)
  check_against_brute_force(lattice[::2] / 3, lattice / 3)


def test_collapse_and_spread():
  reference = 3 * normal(100, 8)
  found = precision_recall(0.1 * normal(100, 8, seed=1), reference)
  assert found["precision"] > 0.9 and found["recall"] < 0.1 and found["coverage"] < 0.7
  found = precision_recall(reference, 0.1 * normal(100, 8, seed=1))
  assert found["precision"] < 0.1 and found["recall"] > 0.9


def test_blocks_of_50000_fit():
  rows = prc.block_rows(50_000, 50_000)
  assert 1000 <= rows and rows * 50_000 <= prc.BLOCK
  # Both sets as given and centred, and the products, distances and flags of a block: under 4 GB.
  assert 4 * 50_000 * 2048 * 4 + prc.BLOCK * (4 + 4 + 1) < 4e9
  assert prc.block_rows(10, 50_000) == 10
  assert prc.block_rows(10, 2 * prc.BLOCK) == 1


def test_a_set_without_the_neighbours():
  with pytest.raises(UserError, match="reference: 5 images.*neighbour number 5.*at least 6"):
    precision_recall(normal(6, 3), normal(5, 3))
  with pytest.raises(UserError, match="samples: 3 images.*neighbour number 3.*at least 4"):
    precision_recall(normal(3, 3), normal(5, 3), density_neighbours=1)
