"""InceptionV3 gives the reference's features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.pretrained import inception, layers
from imgtx_jax.pretrained import inception_weights as importer
from imgtx_jax.pretrained.state_dict import in_memory


def test_parity(parity):
  manifest, recorded, weights = parity("inception_fid")
  for name in weights:
    if name.endswith("conv.weight"):
      weights[name] *= np.float32(manifest["conv_gain"])
  params = importer.convert(in_memory(weights))
  images = recorded["images"].transpose(0, 2, 3, 1)
  found = jax.jit(inception.inception_features)(params, images)
  assert set(found) == {"64", "192", "768", "2048", "logits_unbiased"}
  for name, value in found.items():
    np.testing.assert_allclose(value, recorded[f"features_{name}"], atol=1e-3, err_msg=name)


def test_resize_is_that_of_tensorflow_1():
  ramp = np.arange(13, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, 7, 3), np.uint8)
  found = np.asarray(inception.resize(ramp))
  expected = np.minimum(np.arange(299) * 13 / 299, 12)  # no half pixel; the last row is repeated
  np.testing.assert_allclose(found[0, :, 5, 1], expected, atol=1e-4)
  images = np.random.default_rng(0).integers(0, 256, (1, 9, 6, 3), np.uint8)
  floats = images.astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(inception.resize(images), inception.resize(floats), atol=1e-3)


@pytest.mark.parametrize(
  "size, channels, stride, padding",
  [((3, 3), 3, 2, "VALID"), ((3, 3), 4, 2, "SAME"), ((1, 1), 6, 1, "SAME"), ((1, 5), 3, 1, "SAME")],
)
def test_convolution_in_every_form(size, channels, stride, padding):
  draw = np.random.default_rng(0)
  x = draw.standard_normal((2, 9, 8, channels)).astype(np.float32)
  kernel = draw.standard_normal((*size, channels, 5)).astype(np.float32)
  found = layers.convolve(
    {"kernel": kernel, "bias": np.arange(5)}, x, stride=stride, padding=padding
  )
  dimensions = ("NHWC", "HWIO", "NHWC")
  expected = jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=dimensions
  )
  np.testing.assert_allclose(found, expected + np.arange(5), atol=1e-5)


def test_depthwise_convolution():
  draw = np.random.default_rng(0)
  x = draw.standard_normal((2, 9, 8, 4)).astype(np.float32)
  kernel = draw.standard_normal((5, 5, 1, 4)).astype(np.float32)
  found = layers.convolve_depthwise({"kernel": kernel, "bias": np.ones(4)}, x, stride=2)
  dimensions = ("NHWC", "HWIO", "NHWC")
  expected = jax.lax.conv_general_dilated(
    x, kernel, (2, 2), "SAME", dimension_numbers=dimensions, feature_group_count=4
  )
  np.testing.assert_allclose(found, expected + 1, atol=1e-5)


def test_pools():
  x = np.random.default_rng(0).standard_normal((1, 7, 6, 2)).astype(np.float32)
  pool = functools.partial(jax.lax.reduce_window, window_dimensions=(1, 3, 3, 1))
  largest = pool(x, -jnp.inf, jax.lax.max, window_strides=(1, 2, 2, 1), padding="VALID")
  np.testing.assert_array_equal(layers.max_pool(x, stride=2), largest)
  around = pool(x, -jnp.inf, jax.lax.max, window_strides=(1, 1, 1, 1), padding="SAME")
  np.testing.assert_array_equal(layers.max_pool(x, stride=1, padding="SAME"), around)
  total, count = (
    pool(y, 0.0, jax.lax.add, window_strides=(1, 1, 1, 1), padding="SAME")
    for y in (x, np.ones_like(x))
  )
  np.testing.assert_allclose(layers.average_pool(x), total / count, atol=1e-6)
