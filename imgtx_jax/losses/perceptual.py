"""LPIPS v0.1, the perceptual distance of arXiv:1801.03924."""

import jax.numpy as jnp

from imgtx_jax.pretrained.vgg import alexnet_features, vgg16_features

_EPSILON = 1e-10  # as in the authors' code

_NETS = {
  "vgg": (vgg16_features, ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")),
  "alex": (alexnet_features, ("relu1", "relu2", "relu3", "relu4", "relu5")),
}


def lpips(params, x, y, *, net="vgg", dtype=jnp.float32):
  """Returns the LPIPS distance of each pair of images (arXiv:1801.03924).

  Args:
    params: {net: weights of the features, "heads": five weights [C]}, as lpips_weights.load(net)
      returns them.
    x: images [B, H, W, 3] in [-1, 1].
    y: images [B, H, W, 3] in [-1, 1].
    net: "vgg" or "alex".
    dtype: dtype of the features' computation; their comparison is float32.

  Returns:
    float32 [B], 0 up to rounding for equal images.
  """
  extract, layers = _NETS[net]
  # Two passes, not one over both: a loss differentiates only one of the images.
  features_x = extract(params[net], x, dtype=dtype)
  features_y = extract(params[net], y, dtype=dtype)
  distance = 0.0
  for layer, head in zip(layers, params["heads"], strict=True):
    squared = (_unit(features_x[layer]) - _unit(features_y[layer])) ** 2  # [B, h, w, C]
    # The head is a 1x1 convolution and linear: it may come after the mean over positions.
    distance += jnp.sum(squared.mean(axis=(1, 2)) * jnp.asarray(head, jnp.float32), axis=-1)
  return distance


def _unit(features):
  """Divides features [B, h, w, C] by each position's norm; float32 [B, h, w, C].

  Positions where all features are 0 stay 0 and get no gradient: the square root's is infinite.
  """
  features = features.astype(jnp.float32)
  square = jnp.sum(features**2, axis=-1, keepdims=True)
  alive = square > 0
  length = jnp.sqrt(jnp.where(alive, square, 1.0))
  return features * jnp.where(alive, 1.0 / (length + _EPSILON), 0.0)
