"""Measures of style transfer: by hand, by brute force, and what they order."""

import jax
import numpy as np

from imgtx_jax.metrics import style


def uniform(*shape, seed=0, low=-1.0):
  return np.random.default_rng([seed, *shape]).uniform(low, 1, shape).astype(np.float32)


def test_gray_by_hand():
  images = np.array([[-1, -1, -1], [1, 1, 1], [1, -1, -1], [-1, 1, -1]], np.float32)
  found = style.gray(images[:, None, None])
  assert found.shape == (4, 1, 1, 1)
  np.testing.assert_allclose(found.ravel(), [-1, 1, 2 * 0.299 - 1, 2 * 0.587 - 1], atol=1e-6)


def cfsd_slowly(output, content):
  """Of one pair [h, w, C], in float64 and with logarithms."""
  maps = []
  for features in (output, content):
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64) / features.shape[-1]
    exponents = np.exp(rows @ rows.T)
    maps.append(exponents / exponents.sum(axis=1, keepdims=True))
  return (maps[1] * (np.log(maps[1]) - np.log(maps[0]))).sum()


def test_cfsd_by_brute_force():
  # 26 · 20 positions are more than a block of rows.
  output, content = uniform(2, 26, 20, 4, low=0) * 6, uniform(2, 26, 20, 4, seed=1, low=0) * 6
  found = jax.jit(style.cfsd)(output, content)
  expected = [cfsd_slowly(*pair) for pair in zip(output, content, strict=True)]
  assert expected[0] > 1
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  swapped = style.cfsd(content, output)
  np.testing.assert_allclose(swapped[0], cfsd_slowly(content[0], output[0]), rtol=1e-4)
  assert abs(swapped[0] / found[0] - 1) > 1e-3  # content first, then output


def test_cfsd_orders_and_is_0_for_equal_features():
  content = uniform(1, 8, 8, 16, low=0) * 10
  changes = [content, *(content + s * uniform(1, 8, 8, 16, seed=2) for s in (0.5, 2, 8))]
  found = [float(style.cfsd(output, content)[0]) for output in changes]
  assert found[0] == 0.0 and sorted(set(found)) == found


def test_grams_by_hand():
  # Two positions: (1, 2) and (3, 0).
  features = {"one": np.array([[[[1.0, 2.0], [3.0, 0.0]]]], np.float32)}
  found = style.grams(features)
  np.testing.assert_allclose(found["one"], [[[5.0, 1.0], [1.0, 2.0]]])
  none = {"one": np.zeros((1, 2, 2))}
  np.testing.assert_allclose(style.gram_distance(found, none), [(25 + 1 + 1 + 4) / 4])
  np.testing.assert_allclose(
    style.gram_distance(
      found | {"two": none["one"] + 2}, {"one": found["one"], "two": none["one"]}
    ),
    [4.0],
  )
  # Where a feature lies does not matter.
  x = uniform(1, 4, 6, 3)
  mixed = x.reshape(1, 24, 3)[:, ::-1].reshape(1, 6, 4, 3)
  grams = [style.grams({"one": features}) for features in (x, mixed)]
  np.testing.assert_allclose(style.gram_distance(*grams), [0.0], atol=1e-10)


def histogram_slowly(pixels):
  """Of pixels [n, 3] in [0, 1], pixel by pixel and bin by bin, not normalised."""
  bins, found = np.linspace(-3, 3, 64), np.zeros((3, 64, 64))
  for pixel in pixels.astype(np.float64):
    for channel in range(3):
      first, second = [c for c in range(3) if c != channel]
      u = np.log(pixel[channel] + 1e-6) - np.log(pixel[first] + 1e-6)
      v = np.log(pixel[channel] + 1e-6) - np.log(pixel[second] + 1e-6)
      weight = np.sqrt((pixel**2).sum() + 1e-6)
      near_u, near_v = (1 / (1 + ((x - bins) / 0.02) ** 2) for x in (u, v))
      found[channel] += weight * np.outer(near_u, near_v)
  return found


def test_histogram_by_brute_force():
  images = uniform(2, 3, 4, 3)
  images[0, 0, 0] = [-1.0, 1.0, 1.0]  # no red: its logarithm is not infinite
  found = np.asarray(jax.jit(style.histogram)(images))
  assert found.shape == (2, 3, 64, 64)
  np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), [1.0, 1.0], rtol=1e-4)
  for image, histogram in zip(images, found, strict=True):
    expected = histogram_slowly((image.reshape(-1, 3) + 1) / 2)
    np.testing.assert_allclose(histogram, expected / expected.sum(), rtol=2e-3, atol=1e-7)


def test_histogram_distance():
  red, blue = (np.zeros((1, 4, 4, 3), np.float32) - 0.8 for _ in range(2))
  red[..., 0], blue[..., 2] = 0.9, 0.9
  dark = (red + 1) * 0.7 - 1  # the same hue
  of_red, of_blue, of_dark = (style.histogram(x) for x in (red, blue, dark))
  assert style.histogram_distance(of_red, of_red)[0] == 0.0
  assert 0.5 < style.histogram_distance(of_red, of_blue)[0] <= 1.0
  assert style.histogram_distance(of_red, of_dark)[0] < 1e-2
  half = np.concatenate([red, blue], axis=1)
  assert 0.2 < style.histogram_distance(of_red, style.histogram(half))[0] < 0.7
  # √(1 − ½ · Σ …) by hand: disjoint halves of the mass.
  x, y = np.zeros((2, 1, 3, 64, 64), np.float32)
  x[0, 0, 0, 0], y[0, 0, 0, 0], y[0, 1, 5, 5] = 1.0, 0.5, 0.5
  np.testing.assert_allclose(style.histogram_distance(x, y), [np.sqrt(1 - np.sqrt(0.5))], rtol=1e-5)


def test_a_large_image_is_reduced_first():
  large = np.broadcast_to(np.float32([0.5, -0.2, 0.1]), (1, 300, 20, 3))
  np.testing.assert_allclose(style.histogram(large), style.histogram(large[:, :8]), atol=1e-6)


def test_transfer_color_matches_mean_and_deviation():
  content, target = uniform(2, 9, 7, 3), 0.3 * uniform(2, 5, 5, 3, seed=1) + 0.2
  found = style.transfer_color(content, target)
  np.testing.assert_allclose(found.mean((1, 2)), target.mean((1, 2)), atol=1e-5)
  np.testing.assert_allclose(found.std((1, 2)), target.std((1, 2)), atol=1e-5)
  # Each channel keeps its order of pixels; a flat one gets the mean.
  assert np.array_equal(found[0, ..., 1].argsort(None), content[0, ..., 1].argsort(None))
  flat = style.transfer_color(np.zeros_like(content), target)
  np.testing.assert_allclose(flat[0, 0, 0], target[0].mean((0, 1)), atol=1e-5)
