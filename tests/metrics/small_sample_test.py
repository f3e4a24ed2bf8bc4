"""Small sets against halves of real ones."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import small_sample
from imgtx_jax.metrics.frechet import frechet_distance


@pytest.fixture
def draw():
  return np.random.default_rng(0)


@pytest.mark.parametrize("sizes", [(5, 7), (30, 5), (40, 30)])
def test_frechet_is_that_of_the_moments(sizes, draw):
  x, y = (draw.normal(size=(n, 12)).astype(np.float32) + i for i, n in enumerate(sizes))
  moments = [part for z in (x, y) for part in (z.mean(axis=0, dtype=float), np.cov(z.T))]
  expected = frechet_distance(*moments)
  assert small_sample.frechet_of_features(x, y) == pytest.approx(expected, rel=1e-6)
  assert small_sample.frechet_of_features(x, x) == pytest.approx(0, abs=1e-5)


def test_samples_that_are_real_reach_the_floor(draw):
  features = draw.normal(size=(90, 64)).astype(np.float32)
  found = small_sample.compare_with_halves(features[:30], features[30:])
  assert found["size"] == 30
  ours, floor = found["samples"], found["real"]
  assert floor["frechet"] > 20  # of equal distributions: the bias of so few images
  assert ours["frechet"] == pytest.approx(floor["frechet"], rel=0.1)
  assert abs(ours["kernel"]) < 0.05 and abs(floor["kernel"]) < 0.05
  assert abs(ours["recall"] - floor["recall"]) < 0.35


def test_samples_that_are_not_real_are_above_it(draw):
  real = draw.normal(size=(60, 16)).astype(np.float32)
  samples = 0.1 * draw.normal(size=(40, 16)).astype(np.float32) + 2
  found = small_sample.compare_with_halves(samples, real)
  ours, floor = found["samples"], found["real"]
  assert ours["frechet"] > 3 * floor["frechet"]
  assert ours["kernel"] > abs(floor["kernel"]) + 10 * floor["kernel_deviation"]
  assert ours["recall"] == 0 and floor["recall"] > 0.3


def test_few_and_fewer_images(draw):
  features = draw.normal(size=(8, 3)).astype(np.float32)
  found = small_sample.compare_with_halves(features, features, splits=2)
  assert found["size"] == 4 and found["samples"]["kernel"] is not None
  assert found["samples"]["precision"] is None and found["real"]["recall"] is None
  assert small_sample.compare_with_halves(features, features[:3]) is None
  assert small_sample.compare_with_halves(features[:1], features) is None


def test_nan_is_refused(draw):
  features = draw.normal(size=(8, 3))
  with pytest.raises(UserError, match="reference: 1 of 8 rows hold NaN"):
    bad = features.copy()
    bad[2, 1] = np.nan
    small_sample.compare_with_halves(features, bad)
