"""Palettes: given, mixed, and none."""

import jax
import numpy as np
import pytest

from imgtx_jax.models import palette


def images(seed, scale=0.4, count=2):
  draw = np.random.default_rng(seed)
  mixing = draw.uniform(-1, 1, (3, 3))
  noise = draw.uniform(-1, 1, (count, 16, 24, 3)) @ mixing
  return np.clip(scale * noise + draw.uniform(-0.2, 0.2, 3), -1, 1).astype(np.float32)


def covariance(image):
  return np.cov(image.reshape(-1, 3).T, bias=True)


def recolor(content, target):
  return palette.apply(content, *palette.transfer(palette.of_images(content), target))


def test_colours_have_the_styles_mean_and_covariance():
  content, style = images(0), images(1)
  moved = recolor(content, palette.of_images(style))
  np.testing.assert_allclose(moved.mean((1, 2)), style.mean((1, 2)), atol=1e-5)
  for ours, theirs in zip(moved, style, strict=True):
    # But for the floor under variances.
    np.testing.assert_allclose(covariance(ours), covariance(theirs), atol=0.02)


def test_its_own_colours_and_none_leave_an_image_as_it_is():
  content = images(2)
  for target in (palette.of_images(content), palette.none(2)):
    np.testing.assert_allclose(recolor(content, target), content, atol=1e-5)


def test_half_a_palette_leads_half_the_way():
  content, style = images(3), images(4)
  half = jax.tree.map(lambda x: 0.5 * x, palette.of_images(style))
  moved = recolor(content, half)
  expected = (content.mean((1, 2)) + style.mean((1, 2))) / 2
  np.testing.assert_allclose(moved.mean((1, 2)), expected, atol=1e-5)


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_flat_images_stay_finite_and_flat(value):
  flat = np.full((1, 8, 8, 3), value, np.float32)
  style = palette.of_images(images(5, count=1))
  moved = recolor(flat, style)
  np.testing.assert_allclose(moved, np.broadcast_to(style.mean, moved.shape), atol=1e-4)
  assert np.isfinite(recolor(images(6, count=1), palette.of_images(flat))).all()
