import numpy as np
import pytest

from imgtx_jax.evaluate.audit import corruptions


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
@pytest.mark.parametrize("size", [16, 32])
def test_strength_0_is_the_identity_and_more_changes_more(name, size, smooth_images):
  images = smooth_images(4, size)
  kept = images.copy()
  changes = []
  for strength in (0, *corruptions.STRENGTHS):
    found = corruptions.corrupt(name, images, strength)
    assert found.shape == images.shape and found.dtype == np.uint8
    changes.append(np.abs(found.astype(float) - images).mean())
  assert changes[0] == 0
  assert all(more > less for less, more in zip(changes, changes[1:], strict=False)), changes
  np.testing.assert_array_equal(images, kept)


def test_noise_belongs_to_the_image_and_the_seed(smooth_images):
  images = smooth_images(3, 16)
  found = corruptions.corrupt("noise", images, 2, seed=1)
  np.testing.assert_array_equal(found[:2], corruptions.corrupt("noise", images[:2], 2, seed=1))
  assert (found != corruptions.corrupt("noise", images, 2, seed=2)).any()
  same = corruptions.corrupt("noise", images[:1].repeat(2, axis=0), 2)
  assert (same[0] != same[1]).any()


def test_brightness_and_colours_keep_their_sense():
  image = np.zeros((1, 16, 16, 3), np.uint8)
  image[..., 0], image[..., 2] = 200, 100
  assert corruptions.corrupt("brighter", image, 1)[0, 0, 0].tolist() == [226, 26, 126]
  assert corruptions.corrupt("darker", image, 1)[0, 0, 0].tolist() == [174, 0, 74]
  red, green, blue = corruptions.corrupt("JPEG", image, 1)[0, 8, 8].astype(int)
  assert abs(red - 200) < 12 and green < 12 and abs(blue - 100) < 12


def test_crop_enlarges_the_middle():
  image = np.zeros((1, 20, 20, 3), np.uint8)
  image[:, 1:19, 1:19] = 255
  assert (corruptions.corrupt("crop", image, 1) == 255).all()


def test_descriptions():
  assert corruptions.describe("JPEG", 2) == "quality 40"
  assert corruptions.describe("darker", 1) == "−10% of white"
