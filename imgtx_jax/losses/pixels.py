"""Losses on pixels."""

import jax.numpy as jnp


def squared_error(x, y, mask=None):
  """Mean squared difference of images [B, H, W, C]; [B]. mask [B, H, W, 1]: where it counts."""
  return _masked_mean((x - y) ** 2, mask)


def absolute_error(x, y, mask=None):
  """Mean absolute difference of images [B, H, W, C]; [B]. mask as above."""
  return _masked_mean(jnp.abs(x - y), mask)


def gradient_difference(x, y, mask=None):
  """Mean squared difference of the differences between neighbouring pixels of images [B, H, W, C]
  (arXiv:1511.05440); [B]. A pair counts where the mask holds both.

  It weighs what squared error takes for small: dots in flat areas and edges at patch borders.
  """
  total = 0.0
  for axis in (1, 2):
    pairs = None
    if mask is not None:
      first = jnp.delete(mask, -1, axis=axis)
      pairs = first * jnp.delete(mask, 0, axis=axis)
    total += _masked_mean(jnp.diff(x - y, axis=axis) ** 2, pairs) / 2
  return total


def distance(x, y, gradient_weight, mask=None):
  """squared_error and, by its weight, gradient_difference; [B]."""
  error = squared_error(x, y, mask)
  if gradient_weight:
    error += gradient_weight * gradient_difference(x, y, mask)
  return error


def _masked_mean(values, mask):
  """[B, H, W, C] → [B]; 0 where the mask is empty."""
  if mask is None:
    return jnp.mean(values, axis=(1, 2, 3))
  count = jnp.sum(mask, axis=(1, 2, 3)) * values.shape[-1]
  return jnp.sum(values * mask, axis=(1, 2, 3)) / jnp.maximum(count, 1.0)
