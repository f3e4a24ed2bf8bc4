"""FID's InceptionV3: a pure function of its weights.

It is the network of 2015 that published FID values use (arXiv:1512.00567, arXiv:1706.08500), as in
torch-fidelity and pytorch-fid: images are resized as in TensorFlow 1, average pools ignore the
padding, and the last block has a max-pool where the paper has an average. Batch norms are folded
into the convolutions (inception_weights.py).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.pretrained.layers import average_pool, convolve, max_pool, shapes_of

SIZE = 299
CLASSES = 1008


def inception_features(params, images):
  """Returns the features of FID, sFID, KID and the Inception Score.

  Args:
    params: {layer: {"kernel": [h, w, in, out], "bias": [out]}} with the layers of `shapes()`; the
      kernel of "fc" is [1, 1, 2048, 1008].
    images: [B, H, W, 3], uint8 or float in [-1, 1], of any size.

  Returns:
    float32 {"64": [B, 64], "192": [B, 192], "768": [B, 768], "2048": [B, 2048],
    "logits_unbiased": [B, 1008]}: the spatial means after the first and the second max-pool, after
    Mixed_6e and after Mixed_7c, and the logits without bias.
  """

  def layer(name, x, shape, stride=1, padding="SAME"):
    return jax.nn.relu(convolve(params[name], x, stride=stride, padding=padding))

  features = _forward(layer, (resize(images) - 128) / 128)
  kernel = jnp.asarray(params["fc"]["kernel"])[0, 0]
  return features | {"logits_unbiased": jnp.matmul(features["2048"], kernel, precision="highest")}


@functools.cache
def shapes():
  """Returns {layer: HWIO shape of its kernel} of all 95 layers."""
  return shapes_of(_forward, (1, SIZE, SIZE, 3)) | {"fc": (1, 1, 2048, CLASSES)}


def resize(images):
  """Resizes images, uint8 or float in [-1, 1], to float32 [B, 299, 299, 3] in [0, 255].

  It is bilinear as in TensorFlow 1: pixel i of the new image lies at i · H / 299 of the old one,
  without half-pixel centres, aligned corners or antialiasing.
  """
  x = images.astype(jnp.float32) if images.dtype == jnp.uint8 else (images + 1) * 127.5
  for axis in (2, 1):
    length = x.shape[axis]
    position = np.arange(SIZE, dtype=np.float32) * np.float32(length / SIZE)
    low = position.astype(np.int32)
    high = np.minimum(low + 1, length - 1)
    fraction = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
    start = jnp.take(x, low, axis=axis)
    x = start + (jnp.take(x, high, axis=axis) - start) * fraction
  return x


def _forward(layer, x):
  """Runs the convolutions on x [B, 299, 299, 3]; returns a dict of spatial means.

  layer(name, x, (height, width, channels), stride, padding) applies one convolution and ReLU.
  """
  features = {}
  x = layer("Conv2d_1a_3x3", x, (3, 3, 32), 2, "VALID")  # 149
  x = layer("Conv2d_2a_3x3", x, (3, 3, 32), 1, "VALID")
  x = layer("Conv2d_2b_3x3", x, (3, 3, 64))
  x = max_pool(x, stride=2)  # 73
  features["64"] = x.mean((1, 2))
  x = layer("Conv2d_3b_1x1", x, (1, 1, 80))
  x = layer("Conv2d_4a_3x3", x, (3, 3, 192), 1, "VALID")
  x = max_pool(x, stride=2)  # 35
  features["192"] = x.mean((1, 2))
  for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
    x = _block_5(functools.partial(_inside, layer, name), x, pooled)
  x = _block_6a(functools.partial(_inside, layer, "6a"), x)  # 17
  for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
    x = _block_6(functools.partial(_inside, layer, name), x, width)
  features["768"] = x.mean((1, 2))
  x = _block_7a(functools.partial(_inside, layer, "7a"), x)  # 8
  x = _block_7(functools.partial(_inside, layer, "7b"), x, average_pool)
  x = _block_7(functools.partial(_inside, layer, "7c"), x, _max_around)
  return features | {"2048": x.mean((1, 2))}


def _inside(layer, block, name, *args):
  return layer(f"Mixed_{block}.branch{name}", *args)


def _chain(conv, x, *layers):
  for name, *args in layers:
    x = conv(name, x, *args)
  return x


def _join(*branches):
  return jnp.concatenate(branches, axis=-1)


def _max_around(x):
  return max_pool(x, stride=1, padding="SAME")


def _block_5(conv, x, pooled):
  return _join(
    conv("1x1", x, (1, 1, 64)),
    _chain(conv, x, ("5x5_1", (1, 1, 48)), ("5x5_2", (5, 5, 64))),
    _chain(conv, x, ("3x3dbl_1", (1, 1, 64)), ("3x3dbl_2", (3, 3, 96)), ("3x3dbl_3", (3, 3, 96))),
    conv("_pool", average_pool(x), (1, 1, pooled)),
  )


def _block_6a(conv, x):
  return _join(
    conv("3x3", x, (3, 3, 384), 2, "VALID"),
    _chain(
      conv,
      x,
      ("3x3dbl_1", (1, 1, 64)),
      ("3x3dbl_2", (3, 3, 96)),
      ("3x3dbl_3", (3, 3, 96), 2, "VALID"),
    ),
    max_pool(x, stride=2),
  )


def _block_6(conv, x, width):
  return _join(
    conv("1x1", x, (1, 1, 192)),
    _chain(conv, x, ("7x7_1", (1, 1, width)), ("7x7_2", (1, 7, width)), ("7x7_3", (7, 1, 192))),
    _chain(
      conv,
      x,
      ("7x7dbl_1", (1, 1, width)),
      ("7x7dbl_2", (7, 1, width)),
      ("7x7dbl_3", (1, 7, width)),
      ("7x7dbl_4", (7, 1, width)),
      ("7x7dbl_5", (1, 7, 192)),
    ),
    conv("_pool", average_pool(x), (1, 1, 192)),
  )


def _block_7a(conv, x):
  return _join(
    _chain(conv, x, ("3x3_1", (1, 1, 192)), ("3x3_2", (3, 3, 320), 2, "VALID")),
    _chain(
      conv,
      x,
      ("7x7x3_1", (1, 1, 192)),
      ("7x7x3_2", (1, 7, 192)),
      ("7x7x3_3", (7, 1, 192)),
      ("7x7x3_4", (3, 3, 192), 2, "VALID"),
    ),
    max_pool(x, stride=2),
  )


def _block_7(conv, x, pool):
  wide = conv("3x3_1", x, (1, 1, 384))
  double = _chain(conv, x, ("3x3dbl_1", (1, 1, 448)), ("3x3dbl_2", (3, 3, 384)))
  return _join(
    conv("1x1", x, (1, 1, 320)),
    conv("3x3_2a", wide, (1, 3, 384)),
    conv("3x3_2b", wide, (3, 1, 384)),
    conv("3x3dbl_3a", double, (1, 3, 384)),
    conv("3x3dbl_3b", double, (3, 1, 384)),
    conv("_pool", pool(x), (1, 1, 192)),
  )
