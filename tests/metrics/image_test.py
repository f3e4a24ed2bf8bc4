"""PSNR, border gradients and the nearest training image, by hand and by brute force."""

import numpy as np

from imgtx_jax.metrics import image


def uniform(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(np.float32)


def test_psnr_by_hand():
  x = np.zeros((3, 4, 4, 3), np.float32)
  y = x + np.array([0.2, 2.0, 0.02], np.float32)[:, None, None, None]
  # The peak is 2; an error of .2 is a tenth of it: 20 dB. Values are clipped to 1.
  np.testing.assert_allclose(image.psnr(x, y), [20.0, 20 * np.log10(2.0), 40.0], rtol=1e-4)
  assert image.psnr(x, x)[0] >= 100.0 and np.all(np.isfinite(image.psnr(x, x)))


def test_psnr_looks_at_each_pair_alone():
  x, y = uniform(3, 4, 4, 3), uniform(3, 4, 4, 3, seed=1)
  expected = [10 * np.log10(4 / np.mean((a - b) ** 2)) for a, b in zip(x, y, strict=True)]
  np.testing.assert_allclose(image.psnr(x, y), expected, rtol=1e-4)


def ratio(images, patch):
  across, inside = image.border_gradients(images, patch)
  assert across.shape == inside.shape == (len(images),)
  return np.asarray(across / inside)


def test_border_gradients_by_hand():
  images = np.zeros((1, 4, 4, 1), np.float32)
  images[:, :, 2:] = 0.5  # one step, on the border of columns
  across, inside = image.border_gradients(images, 2)
  np.testing.assert_allclose([across[0], inside[0]], [0.25, 0.0], atol=1e-7)
  images = np.zeros((1, 4, 4, 1), np.float32)
  images[:, 1:] = 0.5  # one step, inside the first row of patches
  across, inside = image.border_gradients(images, 2)
  np.testing.assert_allclose([across[0], inside[0]], [0.0, 0.125], atol=1e-7)


def test_a_visible_grid_shows():
  plain = uniform(4, 16, 24, 3) / 2
  assert np.all(np.abs(ratio(plain, 4) - 1) < 0.1)
  rows, columns = np.divmod(np.arange(16 * 24), 24)
  board = ((rows // 4 + columns // 4) % 2).reshape(16, 24, 1).astype(np.float32)
  gridded = ratio(plain + 0.3 * board, 4)
  assert np.all(gridded > 1.1)
  # Only on the grid that is asked for.
  assert np.all(ratio(np.roll(plain + 0.3 * board, 2, axis=(1, 2)), 4) < gridded)
  smooth = np.repeat(np.repeat(uniform(4, 4, 6, 3), 4, axis=1), 4, axis=2)
  assert np.all(image.border_gradients(smooth, 4)[1] == 0.0)


def test_nearest_psnr_by_brute_force():
  rng = np.random.default_rng(0)
  training = rng.integers(0, 256, (1500, 4, 4, 3), np.uint8)  # more than one chunk
  images = rng.integers(0, 256, (5, 4, 4, 3), np.uint8)
  images[3] = np.clip(training[1200].astype(int) + 1, 0, 255)
  errors = ((images[:, None] / 127.5 - training[None] / 127.5) ** 2).mean(axis=(2, 3, 4))
  expected = 10 * np.log10(4 / errors.min(axis=1))
  assert errors.argmin(axis=1)[3] == 1200
  np.testing.assert_allclose(image.nearest_psnr(images, training), expected, rtol=1e-3)


def test_nearest_psnr_of_a_copy_is_high_and_finite():
  training = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
  found = image.nearest_psnr(training[:2], training)
  assert np.all(found > 55) and np.all(np.isfinite(found))
