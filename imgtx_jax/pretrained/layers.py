"""Inference layers of convolutional networks, in forms that are fast on CPUs too.

On a CPU, XLA's convolution is slow with few channels and its reduce_window is not vectorised. Small
windows are therefore computed from shifted views of the image, which fuse into one loop.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models.layers import precision

_FEW_CHANNELS = 4  # up to this number a convolution is a matrix product over patches


def convolve(params, x, *, stride=1, padding="SAME"):
  """Convolves x [B, H, W, C] to [B, H', W', D].

  Args:
    params: {"kernel": [h, w, C, D], "bias": [D]}.
    x: [B, H, W, C].
    stride: in both directions.
    padding: "SAME" as in TensorFlow (an odd row goes below and to the right), or "VALID".
  """
  kernel = jnp.asarray(params["kernel"], x.dtype)
  h, w, channels, width = kernel.shape
  if h == w == stride == 1:
    y = jnp.matmul(x, kernel[0, 0], precision=precision(x.dtype))
  elif channels <= _FEW_CHANNELS:
    patches = jnp.concatenate(views(x, (h, w), stride, padding, 0), axis=-1)
    y = jnp.matmul(patches, kernel.reshape(-1, width), precision=precision(x.dtype))
  else:
    y = jax.lax.conv_general_dilated(
      *(x, kernel, (stride, stride), padding),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=precision(x.dtype),
    )
  return y + jnp.asarray(params["bias"], x.dtype)


def convolve_depthwise(params, x, *, stride=1):
  """Convolves each channel of x [B, H, W, C] by its own kernel, with "SAME" padding.

  params: {"kernel": [h, w, 1, C], "bias": [C]}. Returns [B, ⌈H / stride⌉, ⌈W / stride⌉, C].
  """
  kernel = jnp.asarray(params["kernel"], x.dtype)
  size = kernel.shape[:2]
  taps = kernel.reshape(-1, kernel.shape[-1])
  parts = views(x, size, stride, "SAME", 0)
  total = sum(part * tap for part, tap in zip(parts, taps, strict=True))
  return total + jnp.asarray(params["bias"], x.dtype)


def max_pool(x, *, stride, padding="VALID"):
  """Returns the maximum of each 3 × 3 window of x [B, H, W, C]."""
  largest, *others = views(x, (3, 3), stride, padding, -jnp.inf)
  for part in others:
    largest = jnp.maximum(largest, part)
  return largest


def average_pool(x):
  """Returns the mean of the 3 × 3 window around each pixel of x [B, H, W, C], without padding."""
  counts = np.multiply.outer(*(_neighbours(n) for n in x.shape[1:3]))
  return sum(views(x, (3, 3), 1, "SAME", 0)) / jnp.asarray(counts[..., None], x.dtype)


def _neighbours(n):
  """Returns how many of i − 1, i, i + 1 lie within [0, n); float32 [n]."""
  i = np.arange(n)
  return (np.minimum(i + 1, n - 1) - np.maximum(i - 1, 0) + 1).astype(np.float32)


def views(x, size, stride, padding, fill):
  """Returns the h·w shifted views of x under a window, each [B, H', W', C], row by row.

  Args:
    x: [B, H, W, C].
    size: (h, w) of the window.
    stride: in both directions.
    padding: "SAME" or "VALID".
    fill: value of the padding.
  """
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
  """Returns {layer: HWIO shape of its kernel} of a network.

  forward(layer, image) runs the network on an image of image_shape by calls of
  layer(name, x, (height, width, channels), stride, padding, depthwise).
  """
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
