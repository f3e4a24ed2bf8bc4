"""A collapsed model has a distance too: finite figures on few distinct images, and a warning."""

import numpy as np
import pytest
from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.metrics.frechet import Moments, frechet_distance


def equal_images(folder, count, distinct=1):
  folder.mkdir()
  draw = np.random.default_rng(3).integers(0, 255, (distinct, 16, 16, 3), np.uint8)
  for i in range(count):
    Image.fromarray(draw[i % distinct]).save(folder / f"{i:02}.png")
  return folder


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_equal_images_have_finite_figures(evaluate, folders, tmp_path, capsys, distinct):
  samples = equal_images(tmp_path / "same", 40, distinct)
  found = evaluate(samples, folders[1])
  assert found["results"]["FD-Tiny"]["value"] > 0
  assert all(np.isfinite(figure["value"]) for figure in found["results"].values())
  assert f"the 40 samples are {distinct} distinct images" in capsys.readouterr().out


def test_distinct_images_are_not_warned_of(evaluate, folders, capsys):
  evaluate(*folders)
  assert "distinct" not in capsys.readouterr().out


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_rounding_of_a_covariance_of_nothing_is_clipped(scale, kind):
  features = np.tile(scale * np.random.default_rng(0).normal(size=64), (40, 1)).astype(kind)
  moments = Moments().add(features)
  covariance = moments.covariance.astype(kind)
  covariance -= 1e-14 * scale**2 * np.eye(64, dtype=kind)
  ones = np.ones(64)
  distance = frechet_distance(moments.mean, covariance, 0 * ones, np.eye(64))
  assert distance == pytest.approx(np.sum(moments.mean**2) + 64, rel=1e-5)


def test_what_is_no_covariance_is_still_refused():
  with pytest.raises(UserError, match="no covariance"):
    frechet_distance(np.ones(3), -1e-3 * np.eye(3), np.ones(3), np.eye(3))
