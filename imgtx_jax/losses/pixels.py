"""Losses on pixels."""

import jax.numpy as jnp

_FLAT = 1e-5  # squared differences that are none: a flat image has no pattern


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


def patch_pattern(images, patch):
  """How much of images [B, H, W, C] is one pattern that every patch repeats: the share of it in the
  squared differences of neighbouring pixels; [B].

  1 of one patch repeated, 1/N of N unrelated patches. Sides are multiples of patch. What a decoder
  of patches draws from inputs it does not know is such a pattern.
  """
  b, height, width, channels = images.shape
  grid = (b, height // patch, patch, width // patch, patch, channels)
  repeated = total = 0.0
  for axis in (1, 2):
    # The last difference, of pixels that the image does not have, is 0.
    steps = jnp.diff(images, axis=axis, append=jnp.take(images, jnp.array([-1]), axis=axis))
    steps = steps.reshape(grid)
    repeated += jnp.sum(jnp.mean(steps, axis=(1, 3)) ** 2, axis=(1, 2, 3))
    total += jnp.sum(jnp.mean(steps**2, axis=(1, 3)), axis=(1, 2, 3))
  return repeated / (total + _FLAT * patch**2 * channels)


def _masked_mean(values, mask):
  """[B, H, W, C] → [B]; 0 where the mask is empty."""
  if mask is None:
    return jnp.mean(values, axis=(1, 2, 3))
  count = jnp.sum(mask, axis=(1, 2, 3)) * values.shape[-1]
  return jnp.sum(values * mask, axis=(1, 2, 3)) / jnp.maximum(count, 1.0)
