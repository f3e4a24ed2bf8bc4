"""The stylizer's head: turns tokens into a change to the image that they encode."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers
from imgtx_jax.models.texture_synthesis import detail_bands, downsample, scale_factors, upsample

_MIN_CHANNELS = 16
_INITIAL_WEIGHTS = (0.5, 0.85)  # of the style's detail and of the image's own detail


class EditHead(nn.Module):
  """Predicts a change to an image from tokens, the image and a synthesized texture.

  Features go from the grid to the pixels, mostly in steps of two. Each step upsamples them,
  concatenates the image and the detail at that size, and convolves twice (a U-Net's upward half,
  arXiv:1505.04597). Channels halve at each step. At each size the features predict per pixel the
  weight of the style's detail band, the weight of the image's own band, and a colour to add. The
  changes of all sizes are summed (as the skips of StyleGAN2, arXiv:1912.04958). Unlike a linear
  head per patch it draws no repeated pattern where tokens are equal.

  At initialisation the style's detail has weight 0.5 and the image's own detail 0.85.

  Call args:
    x: tokens [B, h·w, D].
    shape: (h, w) of the grid.
    modulation: [B, S]; scales and shifts the features of each size.
    image: [B, h·p, w·p, 3] in [-1, 1], where p = patch.
    detail: [B, h·p, w·p, 3], from texture_synthesis.synthesize.
    gains: [B, L] of the image's own detail, finest band first; from contrast_gains.

  Returns:
    The change float32 [B, h·p, w·p, 3] to add to the image.
  """

  patch: int
  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, shape, modulation, image, detail, gains):
    steps = scale_factors(self.patch)
    x = self._modulate("tokens", layers.norm("norm", self.dtype)(x), modulation)
    x = layers.Linear(self.channels, use_bias=True, dtype=self.dtype, name="project")(x)
    x = x.reshape(len(x), *shape, self.channels)
    images = [image]
    for factor in steps[:0:-1]:
      images.append(downsample(images[-1], factor))
    both = detail_bands(image, self.patch), detail_bands(detail, self.patch)
    levels = list(zip(*both, strict=True))
    change = self._change(0, x.astype(self.dtype), *levels[0], gains[:, -1])
    for level, factor in enumerate(steps, 1):
      own, added = levels[level]
      parts = upsample(x, factor), images[-level], added
      x = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)
      features = max(self.channels >> level, _MIN_CHANNELS)
      for name in (f"conv_{level}a", f"conv_{level}b"):
        x = nn.gelu(self._conv(name, x, features))
      x = self._modulate(f"level_{level}", x, modulation)
      finer = self._change(level, x, own, added, gains[:, -1 - level])
      change = upsample(change, factor) + finer
    return change

  def _change(self, level, x, own, added, gain):
    """Returns the change [B, H, W, 3] of one level.

    Args:
      level: its number, 0 at the grid.
      x: features [B, H, W, F].
      own: the image's detail band [B, H, W, 3].
      added: the style's detail band [B, H, W, 3].
      gain: [B], the factor of the image's own band.
    """
    out = self._conv(f"say_{level}", x, 5, kernel_init=nn.initializers.zeros).astype(jnp.float32)
    style, kept = (weight + out[..., 3 + i : 4 + i] for i, weight in enumerate(_INITIAL_WEIGHTS))
    kept = kept * gain[:, None, None, None]
    return out[..., :3] + style * added + (kept - 1.0) * own

  def _conv(self, name, x, features, **options):
    """Convolves x by 3 × 3, rescaled at the edges (partial convolution, arXiv:1811.11718).

    Zero padding alone darkens a frame. Padding by hand is 7 times slower on a CPU, where XLA is
    slow in convolutions without padding of their own.
    """
    options |= {"use_bias": False, "dtype": self.dtype, "name": name}
    x = nn.Conv(features, (3, 3), precision=layers.precision(self.dtype), **options)(x)
    bias = self.param(f"{name}_bias", nn.initializers.zeros, (features,))
    rows, columns = (_inner_fractions(n) for n in x.shape[1:3])
    return x / (rows[:, None, None] * columns[:, None]).astype(x.dtype) + bias.astype(x.dtype)

  def _modulate(self, name, x, modulation):
    """Scales and shifts x [B, …, F] (FiLM, arXiv:1709.07871); the identity at initialisation."""
    table = layers.Linear(
      2 * x.shape[-1], use_bias=True, init_std=layers.ZEROS, dtype=self.dtype, name=f"{name}_scale"
    )(nn.silu(modulation))
    table = table.reshape(len(table), *(1,) * (x.ndim - 2), -1)
    shift, scale = jnp.split(table, 2, axis=-1)
    return x * (1.0 + scale) + shift


def _inner_fractions(n):
  """Returns the fraction of a 3-wide kernel inside a row of n pixels; float32 [n]."""
  counts = np.full(n, 3)
  counts[0] -= 1
  counts[-1] -= 1
  return (counts / 3).astype(np.float32)
