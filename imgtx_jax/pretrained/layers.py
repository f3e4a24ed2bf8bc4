"""Layers of frozen convolutional networks in inference, in the forms that a CPU is fast at too.

XLA's CPU convolution is slow with few channels and its reduce_window is not vectorised: small
windows are shifted views of the image here, which fuse into one loop over the channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

_FEW_CHANNELS = 4  # up to these a convolution is patches and a matrix product


def convolve(params, x, *, stride=1, padding="SAME"):
  """x [B, H, W, C] -> [B, H', W', D] with params {"kernel": [h, w, C, D], "bias": [D]}.

  padding: "SAME" as TensorFlow pads (the odd row below and to the right), or "VALID".
  """
  kernel = jnp.asarray(params["kernel"], x.dtype)
  h, w, channels, width = kernel.shape
  if h == w == stride == 1:
    y = x @ kernel[0, 0]
  elif channels <= _FEW_CHANNELS:
    patches = jnp.concatenate(views(x, (h, w), stride, padding, 0), axis=-1)
    y = patches @ kernel.reshape(-1, width)
  else:
    y = jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  return y + jnp.asarray(params["bias"], x.dtype)


def convolve_depthwise(params, x, *, stride=1):
  """x [B, H, W, C] -> [B, ⌈H / stride⌉, ⌈W / stride⌉, C], each channel with its own kernel of
  params {"kernel": [h, w, 1, C], "bias": [C]}."""
  kernel = jnp.asarray(params["kernel"], x.dtype)
  size = kernel.shape[:2]
  taps = kernel.reshape(-1, kernel.shape[-1])
  parts = views(x, size, stride, "SAME", 0)
  total = sum(part * tap for part, tap in zip(parts, taps, strict=True))
  return total + jnp.asarray(params["bias"], x.dtype)


def max_pool(x, *, stride, padding="VALID"):
  """The largest of each 3x3 window of x [B, H, W, C]."""
  largest, *others = views(x, (3, 3), stride, padding, -jnp.inf)
  for part in others:
    largest = jnp.maximum(largest, part)
  return largest


def average_pool(x):
  """The mean of the 3x3 window around every pixel of x [B, H, W, C]; what lies outside the image
  does not count."""
  counts = np.multiply.outer(*(_neighbours(n) for n in x.shape[1:3]))
  return sum(views(x, (3, 3), 1, "SAME", 0)) / jnp.asarray(counts[..., None], x.dtype)


def _neighbours(n):
  """How many of the places i - 1, i, i + 1 lie within [0, n), float32 [n]."""
  at = np.arange(n)
  return (np.minimum(at + 1, n - 1) - np.maximum(at - 1, 0) + 1).astype(np.float32)


def views(x, size, stride, padding, fill):
  """The h·w shifted views of x [B, H, W, C] that a window of `size` sees, each [B, H', W', C], row
  by row; `fill` is what padding sees."""
  pads = jax.lax.padtype_to_pads(x.shape[1:3], size, (stride, stride), padding)
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
  rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], size, strict=True))
  return [
    jax.lax.slice(
      x,
      (0, i, j, 0),
      (x.shape[0], i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, x.shape[3]),
      (1, stride, stride, 1),
    )
    for i in range(size[0])
    for j in range(size[1])
  ]


def shapes_of(forward, image_shape):
  """{layer: HWIO shape of its kernel} of forward(layer, image), whose layers are called as
  layer(name, x, shape, stride, padding, depthwise)."""
  shapes = {}

  def record(name, x, shape, stride=1, padding="SAME", depthwise=False):
    inputs = 1 if depthwise else x.shape[-1]
    shapes[name] = (*shape[:2], inputs, shape[2])
    pads = jax.lax.padtype_to_pads(x.shape[1:3], shape[:2], (stride, stride), padding)
    side = [
      (n + sum(pad) - k) // stride + 1
      for n, pad, k in zip(x.shape[1:3], pads, shape[:2], strict=True)
    ]
    return jnp.zeros((x.shape[0], *side, shape[2]), x.dtype)

  jax.eval_shape(lambda x: forward(record, x), jax.ShapeDtypeStruct(image_shape, jnp.float32))
  return shapes
