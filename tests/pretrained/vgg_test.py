"""VGG16's convolutions: those of few positions are matrix products, and compute the same."""

import jax
import numpy as np
import pytest

from imgtx_jax.pretrained import vgg


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_positions_compute_the_same_convolution(size):
  random = np.random.default_rng(size)
  x = random.standard_normal((2, size, size, 5)).astype(np.float32)
  kernel = random.standard_normal((3, 3, 5, 7)).astype(np.float32)
  expected = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  bias = np.zeros(7, np.float32)
  found = vgg._conv({"kernel": kernel, "bias": bias}, x, stride=1, padding=1)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(vgg._conv_by_product(kernel, x), expected, atol=1e-4)
