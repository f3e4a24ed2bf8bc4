"""Palettes: given and mixed."""

import jax
import numpy as np
import pytest

from imgtx_jax.models import color_transfer


def images(seed, scale=0.4, count=2):
  draw = np.random.default_rng(seed)
  mixing = draw.uniform(-1, 1, (3, 3))
  noise = draw.uniform(-1, 1, (count, 16, 24, 3)) @ mixing
  return np.clip(scale * noise + draw.uniform(-0.2, 0.2, 3), -1, 1).astype(np.float32)


def covariance(image):
  return np.cov(image.reshape(-1, 3).T, bias=True)


def recolor(content, target):
  return color_transfer.apply_map(
    content, *color_transfer.transfer_map(color_transfer.measure(content), target)
  )


def test_colours_have_the_styles_mean_and_covariance():
  content, style = images(0), images(1)
  moved = recolor(content, color_transfer.measure(style))
  np.testing.assert_allclose(moved.mean((1, 2)), style.mean((1, 2)), atol=1e-5)
  for ours, theirs in zip(moved, style, strict=True):
    # But for the floor under variances.
    np.testing.assert_allclose(covariance(ours), covariance(theirs), atol=0.02)


def test_its_own_colours_leave_an_image_as_it_is():
  content = images(2)
  np.testing.assert_allclose(recolor(content, color_transfer.measure(content)), content, atol=1e-5)


def test_a_mixture_lies_between():
  content, first, second = images(3), *(color_transfer.measure(images(seed)) for seed in (4, 5))
  both = jax.tree.map(lambda a, b: 0.5 * (a + b), first, second)
  moved = recolor(content, both).mean((1, 2))
  np.testing.assert_allclose(moved, (first.mean + second.mean) / 2, atol=1e-5)


def test_an_image_in_parts():
  image = images(6, count=1)
  parts = image[0, :5], image[0, 5:, :7], image[0, 5:, 7:]
  for found, expected in zip(
    color_transfer.measure_tiles(parts), color_transfer.measure(image), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_flat_images_stay_finite_and_flat(value):
  flat = np.full((1, 8, 8, 3), value, np.float32)
  style = color_transfer.measure(images(5, count=1))
  moved = recolor(flat, style)
  np.testing.assert_allclose(moved, np.broadcast_to(style.mean, moved.shape), atol=1e-4)
  assert np.isfinite(recolor(images(6, count=1), color_transfer.measure(flat))).all()
