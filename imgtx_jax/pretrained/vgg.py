"""VGG16 and AlexNet as frozen feature extractors: pure functions of their weights.

Both take {layer: {"kernel": HWIO, "bias": [C]}} (read by lpips_weights.py) and return the output of
every ReLU. Under jit the layers after the last used one cost nothing.
"""

import jax
import jax.numpy as jnp

from imgtx_jax.errors import UserError
from imgtx_jax.models.layers import precision

# ImageNet's channel means and deviations (.485 .456 .406, .229 .224 .225), for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

_FEW_POSITIONS = 4  # up to this number of pixels a convolution is a matrix product

_VGG16_BLOCKS = (2, 2, 3, 3, 3)
VGG16_LAYERS = tuple(f"{b}_{i}" for b, n in enumerate(_VGG16_BLOCKS, 1) for i in range(1, n + 1))

# layer, stride, padding, whether a max-pool precedes it
_ALEXNET = (
  ("1", 4, 2, False),
  ("2", 1, 2, True),
  ("3", 1, 1, True),
  ("4", 1, 1, False),
  ("5", 1, 1, False),
)
ALEXNET_LAYERS = tuple(name for name, *_ in _ALEXNET)


def vgg16_features(params, images, *, dtype=jnp.float32):
  """Returns the 13 activations relu1_1 … relu5_3 of VGG16 (arXiv:1409.1556).

  Args:
    params: {"conv1_1": {"kernel": [3, 3, 3, 64], "bias": [64]}, ...}, all 13 convolutions.
    images: [B, H, W, 3] in [-1, 1], at least 16 × 16; UserError if smaller.
    dtype: of the computation and the result.

  Returns:
    {"relu1_1": [B, H, W, 64], ..., "relu5_3": [B, H // 16, W // 16, 512]}.
  """
  x = _normalize(images, dtype, net="VGG16", smallest=16)
  features = {}
  for layer in VGG16_LAYERS:
    if layer.endswith("_1") and layer != "1_1":
      x = _halve(x)
    x = jax.nn.relu(_conv(params[f"conv{layer}"], x, stride=1, padding=1))
    features[f"relu{layer}"] = x
  return features


def vgg16_means(params, images):
  """Returns the channel means of relu5_3, float32 [B, 512], of uint8 images [B, H, W, 3]."""
  images = images.astype(jnp.float32) / 127.5 - 1
  return vgg16_features(params, images)["relu5_3"].mean((1, 2))


def alexnet_features(params, images, *, dtype=jnp.float32):
  """Returns the 5 activations relu1 … relu5 of AlexNet (the one-tower variant, arXiv:1404.5997).

  Args:
    params: {"conv1": {"kernel": [11, 11, 3, 64], "bias": [64]}, ..., "conv5": ...}.
    images: [B, H, W, 3] in [-1, 1], at least 31 × 31; UserError if smaller.
    dtype: of the computation and the result.

  Returns:
    {"relu1": [B, ~H / 4, ~W / 4, 64], ..., "relu5": [B, ~H / 16, ~W / 16, 256]}.
  """
  x = _normalize(images, dtype, net="AlexNet", smallest=31)
  features = {}
  for layer, stride, padding, pool in _ALEXNET:
    if pool:
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(_conv(params[f"conv{layer}"], x, stride=stride, padding=padding))
    features[f"relu{layer}"] = x
  return features


def _normalize(images, dtype, *, net, smallest):
  height, width = images.shape[1:3]
  if min(height, width) < smallest:
    raise UserError(
      f"{net} features of {height}x{width} images: both sides must be at least {smallest}; "
      "use larger images or switch the perceptual loss off"
    )
  x = (jnp.asarray(images, jnp.float32) - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
  return x.astype(dtype)


def _conv(params, x, *, stride, padding):
  kernel = jnp.asarray(params["kernel"], x.dtype)
  if kernel.shape[:2] == (3, 3) and x.shape[1] * x.shape[2] <= _FEW_POSITIONS:
    return _conv_by_product(kernel, x) + jnp.asarray(params["bias"], x.dtype)
  y = jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=precision(x.dtype),
  )
  return y + jnp.asarray(params["bias"], x.dtype)


def _conv_by_product(kernel, x):
  """Convolves x [B, h, w, C] by 3 × 3 to [B, h, w, C'] as one matrix product over patches.

  At 2 × 2 pixels of 512 channels XLA's convolution is 100 times slower on a CPU.
  """
  b, h, w, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  patches = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
  patches = jnp.concatenate(patches, axis=-1).reshape(b * h * w, -1)
  kernel = kernel.reshape(-1, kernel.shape[-1])
  return jnp.matmul(patches, kernel, precision=precision(x.dtype)).reshape(b, h, w, -1)


def _halve(x):
  """Pools maxima of 2 × 2, [B, h // 2, w // 2, C]; drops an odd last row or column."""
  b, h, w, c = x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
  # Faster than reduce_window, mostly in the gradient: 0.89 instead of 1.02 s for LPIPS of 16 pairs
  # of 64 × 64 on 2 cores.
  return x[:, : 2 * h, : 2 * w].reshape(b, h, 2, w, 2, c).max(axis=(2, 4))
