"""Colours that are kept, masks and weights."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.style_transfer import color_and_masks

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def pair(smooth_images):
  """An image and a content of other colours."""
  return [image / np.float32(127.5) - 1 for image in smooth_images(2, 24)]


def test_luminance_keeps_chroma_even_where_it_would_clip(pair):
  image, content = pair
  found = color_and_masks.keep_color(image, content, "luminance")
  assert np.abs(found).max() <= 1 + 1e-6
  for other in (1, 2):
    np.testing.assert_allclose(
      found[..., other] - found[..., 0], content[..., other] - content[..., 0], atol=1e-6
    )
  inside = (found.max(-1) < 0.999) & (found.min(-1) > -0.999)
  assert 0.3 < inside.mean() < 1
  np.testing.assert_allclose((found @ LUMA)[inside], (image @ LUMA)[inside], atol=1e-6)


def test_coral_keeps_mean_and_covariance(pair):
  image, content = pair[0], 0.3 * pair[1] + 0.1
  found = color_and_masks.keep_color(image, content, "coral").reshape(-1, 3)
  pixels = content.reshape(-1, 3)
  assert np.abs(found).max() < 1
  np.testing.assert_allclose(found.mean(0), pixels.mean(0), atol=1e-5)
  np.testing.assert_allclose(np.cov(found.T), np.cov(pixels.T), atol=1e-5)
  before = np.cov(image.reshape(-1, 3).T)
  assert np.abs(before - np.cov(pixels.T)).max() > 0.1
  assert np.abs(color_and_masks.match_colors(content, content) - content).max() < 1e-4


def test_coral_of_an_image_without_colours_stays_quiet(pair):
  grey = np.repeat(pair[0][..., :1], 3, axis=2)
  found = color_and_masks.match_colors(grey, pair[1])
  assert np.isfinite(found).all()
  flat = color_and_masks.match_colors(np.zeros_like(grey), pair[1])
  np.testing.assert_allclose(flat, np.broadcast_to(pair[1].mean((0, 1)), flat.shape), atol=1e-5)


def test_no_colour_is_kept_unless_asked(pair):
  assert color_and_masks.keep_color(*pair, "no") is pair[0]


def test_masks_are_exact_at_their_borders():
  content = np.linspace(-1, 1, 6 * 6 * 3, dtype=np.float32).reshape(6, 6, 3)
  images = [np.full_like(content, 0.5), np.full_like(content, -0.5)]
  left = np.zeros((6, 6), np.float32)
  left[:, :2] = 1
  middle = np.zeros((6, 6), np.float32)
  middle[:, 1:3] = 1
  middle[:, 3] = 0.25
  found = color_and_masks.blend(content, images, [left, middle])
  np.testing.assert_array_equal(found[:, 0], images[0][:, 0])
  np.testing.assert_array_equal(found[:, 1], np.zeros((6, 3)))  # both: they share
  np.testing.assert_array_equal(found[:, 2], images[1][:, 2])
  np.testing.assert_allclose(found[:, 3], 0.75 * content[:, 3] - 0.125, atol=1e-6)
  np.testing.assert_array_equal(found[:, 4:], content[:, 4:])


def test_weights():
  np.testing.assert_allclose(color_and_masks.parse_weights("", 3), [1 / 3] * 3)
  np.testing.assert_allclose(color_and_masks.parse_weights("3,1", 2), [0.75, 0.25])
  for text, message in {
    "1,2,3": "--weights=1,2,3 is 3 numbers for 2 styles; give one for each --style",
    "1": "is 1 numbers for 2 styles",
    "1,x": "give numbers with commas",
    "-1,2": "weights are 0 or more",
    "0,0": "not all 0",
    "nan,1": "weights are 0 or more",
  }.items():
    with pytest.raises(UserError, match=message):
      color_and_masks.parse_weights(text, 2)
