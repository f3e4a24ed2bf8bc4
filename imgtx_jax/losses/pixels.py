"""Losses of pairs of images [B, H, W, C], one number per pair.

The argument `mask` [B, H, W, 1] weighs the pixels; by default all count.
"""

import jax.numpy as jnp


def squared_error(x, y, mask=None):
  """Returns the mean squared difference [B] of images [B, H, W, C]."""
  return _masked_mean((x - y) ** 2, mask)


def absolute_error(x, y, mask=None):
  """Returns the mean absolute difference [B] of images [B, H, W, C]."""
  return _masked_mean(jnp.abs(x - y), mask)


def gradient_difference(x, y, mask=None):
  """Returns the mean squared difference [B] of the gradients of images [B, H, W, C].

  Gradients are differences of neighbouring pixels (arXiv:1511.05440); a pair of neighbours counts
  where the mask has both. This loss penalises dots in flat areas and edges at patch borders, whose
  squared error is small.
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
  """Returns squared_error + gradient_weight · gradient_difference; [B]."""
  error = squared_error(x, y, mask)
  if gradient_weight:
    error += gradient_weight * gradient_difference(x, y, mask)
  return error


def _masked_mean(values, mask):
  """Returns the mean [B] of values [B, H, W, C] under the mask; 0 where the mask is empty."""
  if mask is None:
    return jnp.mean(values, axis=(1, 2, 3))
  count = jnp.sum(mask, axis=(1, 2, 3)) * values.shape[-1]
  return jnp.sum(values * mask, axis=(1, 2, 3)) / jnp.maximum(count, 1.0)
