"""LPIPS v0.1, the perceptual distance of arXiv:1801.03924."""

import jax.numpy as jnp

from imgtx_jax.pretrained.vgg import alexnet_features, vgg16_features

_EPSILON = 1e-10  # of the authors' code

_NETS = {
  "vgg": (vgg16_features, ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")),
  "alex": (alexnet_features, ("relu1", "relu2", "relu3", "relu4", "relu5")),
}


def lpips(params, x, y, *, net="vgg", dtype=jnp.float32):
  """The distance of each pair of images; 0, to rounding, where they are equal.

  arXiv:1801.03924 with its authors' weights v0.1.

  params: {net: the features' weights, "heads": five weights [C]}, as importers.lpips.load(net)
    gives them.
  x, y: [B, H, W, 3] in [-1, 1].
  dtype: what the features are computed in; their comparison is float32.
  Returns [B] float32.
  """
  extract, layers = _NETS[net]
  # Two passes and not one over both: a loss differentiates only one of the images.
  features_x = extract(params[net], x, dtype=dtype)
  features_y = extract(params[net], y, dtype=dtype)
  distance = 0.0
  for layer, head in zip(layers, params["heads"], strict=True):
    squared = (_unit(features_x[layer]) - _unit(features_y[layer])) ** 2  # [B, h, w, C]
    # The head is a 1x1 convolution and linear: it may come after the mean over positions.
    distance += jnp.sum(squared.mean(axis=(1, 2)) * jnp.asarray(head, jnp.float32), axis=-1)
  return distance


def _unit(features):
  """Scales each position's channels to length 1; [B, h, w, C] to the same in float32.

  Positions where every ReLU is dead stay 0 and pass no gradient: the square root's is infinite.
  """
  features = features.astype(jnp.float32)
  square = jnp.sum(features**2, axis=-1, keepdims=True)
  alive = square > 0
  length = jnp.sqrt(jnp.where(alive, square, 1.0))
  return features * jnp.where(alive, 1.0 / (length + _EPSILON), 0.0)
