"""Colour transfer: measures the mean and covariance of colours and maps one set to another.

Dimensions: B batch, H W image.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_product = functools.partial(jnp.matmul, precision="highest")
_FLOOR = 1e-3  # added to variances of images in [-1, 1]: a flat image has singular covariance


class ColorStatistics(NamedTuple):
  """Statistics of the colours of B images.

  mean: [B, 3]. root_covariance: [B, 3, 3], the symmetric square root of the covariance.
  A weighted sum of statistics stands for a mixture of the images' colours.
  """

  mean: Any
  root_covariance: Any


def zeros(batch):
  """Returns ColorStatistics of zeros for `batch` images."""
  return ColorStatistics(jnp.zeros((batch, 3)), jnp.zeros((batch, 3, 3)))


def measure(images):
  """Returns the ColorStatistics of images [B, H, W, 3] in [-1, 1]."""
  pixels = images.astype(jnp.float32).reshape(images.shape[0], -1, 3)
  mean = jnp.mean(pixels, axis=1)
  centred = pixels - mean[:, None]
  covariance = _product(centred.swapaxes(1, 2), centred) / pixels.shape[1]
  root, _ = _roots(covariance + _FLOOR * jnp.eye(3))
  return ColorStatistics(mean, root)


def measure_tiles(tiles):
  """Returns the ColorStatistics, B = 1, of one large image given as NumPy tiles [h, w, 3].

  Each pixel of the image must lie in exactly one tile.
  """
  count, total, squares = 0, np.zeros(3), np.zeros((3, 3))
  for tile in tiles:
    pixels = np.asarray(tile, np.float64).reshape(-1, 3)
    count += len(pixels)
    total += pixels.sum(0)
    squares += pixels.T @ pixels
  mean = total / count
  covariance = squares / count - np.outer(mean, mean)
  root, _ = _roots(np.float32(covariance + _FLOOR * np.eye(3))[None])
  return ColorStatistics(np.float32(mean)[None], root)


def transfer_map(source, target):
  """Returns (matrix [B, 3, 3], offset [B, 3]): c → matrix · c + offset maps colours.

  Images with the ColorStatistics `source` get the ColorStatistics `target`. Of all linear maps
  that do so this one moves colours least (Monge–Kantorovich; Pitié & Kokaram 2007).
  """
  root, inverse = _roots(_product(source.root_covariance, source.root_covariance))
  middle = _product(target.root_covariance, root)
  middle, _ = _roots(_product(middle.swapaxes(1, 2), middle))
  matrix = _product(_product(inverse, middle), inverse)
  return matrix, target.mean - _product(matrix, source.mean[..., None])[..., 0]


def apply_map(images, matrix, offset):
  """Applies transfer_map's matrix [B, 3, 3] and offset [B, 3] to images [B, H, W, 3].

  Returns images clipped to [-1, 1].
  """
  moved = jnp.einsum("bhwc,bdc->bhwd", images, matrix, precision="highest")
  return jnp.clip(moved + offset[:, None, None], -1.0, 1.0)


def _roots(matrices):
  """Returns the symmetric square roots of positive matrices [B, 3, 3], and their inverses."""
  values, vectors = jnp.linalg.eigh(matrices)
  root = jnp.sqrt(jnp.maximum(values, 1e-8))[:, None]
  transposed = vectors.swapaxes(1, 2)
  return _product(vectors * root, transposed), _product(vectors / root, transposed)
