"""PSNR, SSIM, border gradients and the nearest training image: by hand, brute force, an oracle."""

import jax
import numpy as np
import pytest

from imgtx_jax.errors import UserError
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


def test_nearest_psnr_by_brute_force(monkeypatch):
  monkeypatch.setattr(image, "_BLOCK_BYTES", 4 * 48 * 4)  # 4 images at a time
  rng = np.random.default_rng(0)
  training = rng.integers(0, 256, (1500, 4, 4, 3), np.uint8)
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


def waves(smooth_images, count, size, seed=0):
  return smooth_images(count, size, seed).astype(np.float32) / 127.5 - 1


def test_ssim_by_scikit_image(smooth_images):
  oracle = pytest.importorskip("skimage.metrics").structural_similarity
  x = waves(smooth_images, 3, 32)[:, :27]  # not square
  y = np.clip(x + np.array([0.02, 0.2, 1.0])[:, None, None, None] * uniform(3, 27, 32, 3), -1, 1)
  y[2] = uniform(1, 27, 32, 3)  # nothing in common
  expected = [
    oracle(
      *((i.astype(np.float64) + 1) / 2 for i in pair),
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      data_range=1.0,
      channel_axis=-1,
    )
    for pair in zip(x, y, strict=True)
  ]
  assert expected[0] > 0.9 > 0.1 > expected[2]
  np.testing.assert_allclose(jax.jit(image.ssim)(x, y), expected, atol=2e-5)


def test_ssim_of_flat_images_by_hand():
  # Only luminance differs; beyond the range it is clipped.
  x, y = np.full((2, 12, 12, 3), -0.5), np.full((2, 12, 12, 3), [[[[0.5]]], [[[7.0]]]])
  expected = [(2 * 0.25 * v + 1e-4) / (0.25**2 + v**2 + 1e-4) for v in (0.75, 1.0)]
  np.testing.assert_allclose(image.ssim(x, y), expected, rtol=1e-4)


def ms_ssim_slowly(x, y):
  """Of one pair of channels [H, W] in [0, 1], float64, window by window."""
  offset = np.arange(11) - 5
  window = np.exp(-0.5 * (offset / 1.5) ** 2)
  window = np.outer(window, window) / window.sum() ** 2
  product = 1.0
  for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
    if scale:
      x, y = ((i[::2, ::2] + i[1::2, ::2] + i[::2, 1::2] + i[1::2, 1::2]) / 4 for i in (x, y))
    a, b = (np.lib.stride_tricks.sliding_window_view(i, (11, 11)) for i in (x, y))
    mean = lambda w: (w * window).sum(axis=(2, 3))  # noqa: E731, B023
    structure = (2 * (mean(a * b) - mean(a) * mean(b)) + 9e-4) / (
      mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2 + 9e-4
    )
    luminance = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4)
    product *= (structure * luminance if scale == 4 else structure).mean() ** weight
  return product


def test_ms_ssim_by_brute_force(smooth_images):
  x = waves(smooth_images, 1, 192)[:, :176, :, :2]
  y = np.clip(x + 0.3 * uniform(1, 176, 192, 2), -1, 1)
  pairs = ((np.float64(x[0, ..., c] + 1) / 2, np.float64(y[0, ..., c] + 1) / 2) for c in range(2))
  expected = np.mean([ms_ssim_slowly(*pair) for pair in pairs])
  assert 0.5 < expected < 0.99
  np.testing.assert_allclose(jax.jit(image.ms_ssim)(x, y), [expected], atol=1e-4)


def test_ms_ssim_orders_images(smooth_images):
  x = waves(smooth_images, 1, 161)  # the least size; odd at the first scale
  noise = uniform(1, 161, 161, 3)
  x, y = np.repeat(x, 4, axis=0), np.concatenate([x, x + 0.1 * noise, x + 0.5 * noise, -x])
  ms_ssim = jax.jit(image.ms_ssim)
  found = ms_ssim(x, y)
  assert found.shape == (4,) and np.all(np.isfinite(found))
  np.testing.assert_allclose(found[0], 1.0, atol=1e-5)
  assert found[0] > found[1] > found[2] > found[3] == 0.0  # the negative's structure is opposed
  np.testing.assert_allclose(ms_ssim(y, x), found, atol=1e-6)


def test_too_small_for_a_window():
  with pytest.raises(UserError, match="SSIM: images of 32×10 are smaller than 11×11"):
    image.ssim(uniform(1, 32, 10, 3), uniform(1, 32, 10, 3))
  with pytest.raises(UserError, match="MS-SSIM: images of 160×200 .* 161×161: use SSIM or larger"):
    image.ms_ssim(uniform(1, 160, 200, 3), uniform(1, 160, 200, 3))
  with pytest.raises(UserError, match="differ in size"):
    image.ssim(uniform(1, 32, 32, 3), uniform(1, 32, 16, 3))
