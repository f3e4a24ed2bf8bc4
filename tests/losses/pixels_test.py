"""Pixel losses by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.losses import pixels

X = np.zeros((2, 2, 3, 1), np.float32)
# The second image has a step of 2 between its second and third columns.
Y = np.array([[[0, 0, 0], [0, 0, 0]], [[0, 0, 2], [0, 0, 2]]], np.float32)[..., None]


def test_errors_per_image():
  np.testing.assert_allclose(pixels.squared_error(X, Y), [0, 8 / 6])
  np.testing.assert_allclose(pixels.absolute_error(X, Y), [0, 4 / 6])


def test_a_mask_leaves_the_rest_out():
  mask = np.zeros((2, 2, 3, 1), np.float32)
  mask[:, :, 2] = 1
  np.testing.assert_allclose(pixels.squared_error(X, Y, mask), [0, 4])
  np.testing.assert_allclose(pixels.squared_error(X, Y, 0 * mask), [0, 0])
  # No pair of columns lies within; the rows are equal.
  np.testing.assert_allclose(pixels.gradient_difference(X, Y, mask), [0, 0])


def test_gradient_difference_counts_steps():
  # Along rows no difference; along columns one of two pairs differs by 2.
  np.testing.assert_allclose(pixels.gradient_difference(X, Y), [0, (0 + 4 / 2) / 2])
  np.testing.assert_allclose(pixels.gradient_difference(X, X + 1), [0, 0])
  mask = jnp.ones((2, 2, 3, 1)).at[:, :, 0].set(0)
  np.testing.assert_allclose(pixels.gradient_difference(X, Y, mask), [0, (0 + 4 / 1) / 2])


def test_dots_weigh_more_than_a_shift_of_the_same_size():
  image = np.zeros((1, 8, 8, 3), np.float32)
  dots = image + 0.1 * (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[None, ..., None]
  assert pixels.squared_error(image, dots)[0] == pytest.approx(0.01, rel=1e-4)
  assert pixels.gradient_difference(image, dots)[0] == pytest.approx(0.04, rel=1e-4)
