"""EfficientNet-lite0, an ImageNet classifier: a pure function of its weights.

It is EfficientNet-B0 (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6. Batch norms
are folded into the convolutions (efficientnet_weights.py).
"""

import functools

import jax
import jax.numpy as jnp

from imgtx_jax.pretrained.layers import convolve, convolve_depthwise, shapes_of

SIZE = 224
CLASSES = 1000

# repeats, kernel, stride of the first, expansion, channels
_GROUPS = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


def efficientnet_logits(params, images):
  """Returns ImageNet logits float32 [B, 1000], classes in the order of sorted WordNet ids.

  params: {layer: {"kernel": [h, w, in, out], "bias": [out]}} with the layers of `shapes()`; the
  kernel of "fc" is [1, 1, 1280, 1000].
  images: [B, 224, 224, 3], uint8 or float in [-1, 1]; see `prepare`.
  """

  def layer(name, x, shape, stride=1, padding="SAME", depthwise=False):
    if depthwise:
      return convolve_depthwise(params[name], x, stride=stride)
    return convolve(params[name], x, stride=stride, padding=padding)

  features = _forward(layer, (_pixels(images) - 127) / 128)
  kernel = jnp.asarray(params["fc"]["kernel"])[0, 0]
  logits = jnp.matmul(features, kernel, precision="highest")
  return logits + jnp.asarray(params["fc"]["bias"])


def prepare(images):
  """Crops and resizes images as in the network's published evaluation.

  images: square [B, S, S, 3], uint8 or float in [-1, 1]. Takes the central 87.5 % of each side and
  resizes it (cubic, antialiased). Returns float32 [B, 224, 224, 3] in [-1, 1].
  """
  height, width = images.shape[1:3]
  rows, columns = (max(1, round(0.875 * n)) for n in (height, width))
  top, left = (height - rows) // 2, (width - columns) // 2
  x = _pixels(images)[:, top : top + rows, left : left + columns]
  if (rows, columns) != (SIZE, SIZE):
    x = jax.image.resize(x, (len(x), SIZE, SIZE, 3), "cubic")
  return jnp.clip(x, 0, 255) / 127.5 - 1


@functools.cache
def shapes():
  """Returns {layer: HWIO shape of its kernel} of all 50 layers; [h, w, 1, C] if depthwise."""
  return shapes_of(_forward, (1, SIZE, SIZE, 3)) | {"fc": (1, 1, 1280, CLASSES)}


def _pixels(images):
  """Converts images, uint8 or float in [-1, 1], to float32 in [0, 255]."""
  return images.astype(jnp.float32) if images.dtype == jnp.uint8 else (images + 1) * 127.5


def _forward(layer, x):
  """Runs the convolutions on x [B, 224, 224, 3] by calls of `layer`; returns [B, 1280]."""
  x = jax.nn.relu6(layer("stem", x, (3, 3, 32), 2))  # 112
  number = 0
  for repeats, size, first_stride, expansion, channels in _GROUPS:
    for i in range(repeats):
      block = functools.partial(_block, functools.partial(_block_layer, layer, number))
      x = block(x, size, first_stride if i == 0 else 1, expansion, channels)
      number += 1
  return jax.nn.relu6(layer("head", x, (1, 1, 1280))).mean((1, 2))


def _block_layer(layer, number, name, *args):
  """Calls `layer` with a name inside block `number`."""
  return layer(f"block_{number}.{name}", *args)


def _block(conv, x, size, stride, expansion, channels):
  """Applies an inverted residual block: expand, depthwise, project; a shortcut if shapes match."""
  y = x
  if expansion != 1:
    y = jax.nn.relu6(conv("expand", y, (1, 1, expansion * x.shape[-1])))
  y = jax.nn.relu6(conv("depthwise", y, (size, size, y.shape[-1]), stride, "SAME", True))
  y = conv("project", y, (1, 1, channels))
  return x + y if x.shape == y.shape else y
