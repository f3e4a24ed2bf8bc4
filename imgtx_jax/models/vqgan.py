"""The convolutional tokenizer of LlamaGen's published weights (arXiv:2012.09841, 2406.06525).

Its Encoder and Decoder replace the Transformers in models/tokenizer.Tokenizer. Level i has width
channels · multipliers[i]. Each level but the last halves the image. Only the last, which has the
lowest resolution, has attention. Dimensions: B batch, h w grid, C channels.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from imgtx_jax.models import layers
from imgtx_jax.models.attention_kernels import attend

GROUPS = 32  # groups of each GroupNorm; all widths are multiples of it


def _norm(name, dtype):
  """Returns a GroupNorm module, computed in float32."""
  # The fast variance loses digits when the mean is large.
  return nn.GroupNorm(
    GROUPS,
    epsilon=1e-6,
    use_fast_variance=False,
    force_float32_reductions=True,
    dtype=dtype,
    name=name,
  )


def _conv(width, name, dtype, **options):
  return nn.Conv(
    width, (3, 3), dtype=dtype, precision=layers.precision(dtype), name=name, **options
  )


class ResBlock(nn.Module):
  """A residual block of two convolutions: x [B, h, w, C'] → [B, h, w, width].

  The shortcut is linear if the width changes, else the identity.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    h = nn.silu(_norm("norm1", self.dtype)(x))
    h = _conv(self.width, "conv1", self.dtype)(h)
    h = nn.silu(_norm("norm2", self.dtype)(h))
    h = _conv(self.width, "conv2", self.dtype)(h)
    if x.shape[-1] != self.width:
      x = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="shortcut")(x)
    return x + h


class AttentionBlock(nn.Module):
  """Adds one-head attention over all positions to x [B, h, w, C]."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    batch, height, width, channels = x.shape
    linear = functools.partial(layers.Linear, channels, use_bias=True, dtype=self.dtype)
    h = _norm("norm", self.dtype)(x)
    q, k, v = (linear(name=n)(h).reshape(batch, height * width, 1, channels) for n in "qkv")
    # No fused kernel has heads this wide.
    h = attend(q, k, v, kernel="xla", scale=channels**-0.5)
    return x + linear(name="out")(h.reshape(x.shape))


def _middle(x, dtype):
  width = x.shape[-1]
  x = ResBlock(width, dtype, name="mid_0")(x)
  x = AttentionBlock(dtype, name="mid_1")(x)
  return ResBlock(width, dtype, name="mid_2")(x)


def _level(x, level, width, blocks, attention, dtype):
  for i in range(blocks):
    x = ResBlock(width, dtype, name=f"level_{level}_res_{i}")(x)
    if attention:
      x = AttentionBlock(dtype, name=f"level_{level}_attn_{i}")(x)
  return x


class Encoder(nn.Module):
  """Maps images [B, H, W, 3] in [-1, 1] to latents float32 [B, N, code_dim] in raster order.

  N = (H / p)(W / p), where p = 2^(levels − 1).
  """

  channels: int
  multipliers: tuple[int, ...]
  z_channels: int
  blocks: int
  code_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images):
    last = len(self.multipliers) - 1
    x = _conv(self.channels, "conv_in", self.dtype)(images)
    for level, multiplier in enumerate(self.multipliers):
      width = self.channels * multiplier
      x = _level(x, level, width, self.blocks, level == last, self.dtype)
      if level != last:
        # The reference pads on the right and below only.
        halve = dict(strides=2, padding=((0, 1), (0, 1)))
        x = _conv(width, f"level_{level}_downsample", self.dtype, **halve)(x)
    x = _middle(x, self.dtype)
    x = nn.silu(_norm("norm_out", self.dtype)(x))
    x = _conv(self.z_channels, "conv_out", self.dtype)(x)  # [B, h, w, z]
    x = layers.Linear(self.code_dim, use_bias=True, dtype=self.dtype, name="project")(x)
    return x.reshape(x.shape[0], -1, self.code_dim).astype(jnp.float32)


class Decoder(nn.Module):
  """Maps vectors [B, N, C] to images float32 [B, H, W, 3] and (), as a Generator without taps.

  Levels count from the lowest resolution up. shape: (h, w) of the grid; square by default.
  """

  channels: int
  multipliers: tuple[int, ...]
  z_channels: int
  blocks: int
  taps: tuple[int, ...] = ()  # always empty: it renders no conditioned images
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, vectors, *, shape=None):
    shape = shape or (math.isqrt(vectors.shape[1]),) * 2
    x = vectors.reshape(vectors.shape[0], *shape, vectors.shape[-1])
    x = layers.Linear(self.z_channels, use_bias=True, dtype=self.dtype, name="embed")(x)
    widths = [self.channels * multiplier for multiplier in reversed(self.multipliers)]
    x = _conv(widths[0], "conv_in", self.dtype)(x)
    x = _middle(x, self.dtype)
    for level, width in enumerate(widths):
      x = _level(x, level, width, self.blocks, level == 0, self.dtype)
      if level != len(widths) - 1:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)  # nearest-neighbour upsampling
        x = _conv(width, f"level_{level}_upsample", self.dtype)(x)
    x = nn.silu(_norm("norm_out", self.dtype)(x))
    return _conv(3, "conv_out", self.dtype)(x).astype(jnp.float32), ()
