"""The palette of an image: mean and covariance of its colours, and how to give it to another."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_FLOOR = 1e-3  # added to variances, of images in [-1, 1]: a flat image has no colours to spread


class Palette(NamedTuple):
  """mean [B, 3]; spread [B, 3, 3], the symmetric root of the covariance. Linear in both: a weighted
  sum of palettes is that of a mixture."""

  mean: Any
  spread: Any


def none(batch):
  """All zero, `batch` times."""
  return Palette(jnp.zeros((batch, 3)), jnp.zeros((batch, 3, 3)))


def of_images(images):
  """The Palette of images [B, H, W, 3] in [-1, 1]."""
  pixels = images.astype(jnp.float32).reshape(images.shape[0], -1, 3)
  mean = jnp.mean(pixels, axis=1)
  centred = pixels - mean[:, None]
  covariance = jnp.einsum("bnc,bnd->bcd", centred, centred) / pixels.shape[1]
  spread, _ = _roots(covariance + _FLOOR * jnp.eye(3))
  return Palette(mean, spread)


def of_parts(parts):
  """The Palette, a batch of 1, of one large image in parts [h, w, 3], arrays of NumPy."""
  count, total, squares = 0, np.zeros(3), np.zeros((3, 3))
  for part in parts:
    pixels = np.asarray(part, np.float64).reshape(-1, 3)
    count += len(pixels)
    total += pixels.sum(0)
    squares += pixels.T @ pixels
  mean = total / count
  covariance = squares / count - np.outer(mean, mean)
  spread, _ = _roots(np.float32(covariance + _FLOOR * np.eye(3))[None])
  return Palette(np.float32(mean)[None], spread)


def transfer(own, palette):
  """(matrix [B, 3, 3], offset [B, 3]) of the colours c → matrix · c + offset that gives images of
  palette `own` another one.

  The linear map that moves colours least (Monge–Kantorovich; Pitié & Kokaram 2007).
  """
  root, inverse = _roots(own.spread @ own.spread)
  middle, _ = _roots(root @ palette.spread @ palette.spread @ root)
  matrix = inverse @ middle @ inverse
  return matrix, palette.mean - jnp.einsum("bij,bj->bi", matrix, own.mean)


def apply(images, matrix, offset):
  """Images [B, H, W, 3] with the colours that transfer says, clipped to [-1, 1]."""
  moved = jnp.einsum("bhwc,bdc->bhwd", images, matrix, precision="highest")
  return jnp.clip(moved + offset[:, None, None], -1.0, 1.0)


def _roots(matrices):
  """The symmetric root of symmetric positive matrices [B, 3, 3], and its inverse."""
  values, vectors = jnp.linalg.eigh(matrices)
  root = jnp.sqrt(jnp.maximum(values, 1e-8))[:, None]
  transposed = vectors.swapaxes(1, 2)
  return (vectors * root) @ transposed, (vectors / root) @ transposed
