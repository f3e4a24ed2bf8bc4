"""The stylizer's head: from tokens to a change of the image that they were read from."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from imgtx_jax.models import layers

_LEAST_CHANNELS = 16


class RetouchHead(nn.Module):
  """Tokens [B, h·w, D], modulation [B, S] and an image [B, h·p, w·p, 3] → a change to it of its
  shape, float32; none at the start.

  From the grid to the pixels, mostly in steps of two: features are enlarged linearly, joined by the
  image at that size, and convolved twice (after U-Net, arXiv:1505.04597); channels at the grid,
  half as many after each step. So fine detail follows the image's own, and where tokens are alike
  there is no grid: a head of patches draws one pattern over and over. What brush strokes in flat
  areas can grow from is grain, noise that belongs to places: origin int [2] is where the image
  begins (multiples of the patch), so that a part of an image has the grain of the whole. There is
  grain at each size, from the grid's to the pixels': strokes are of many sizes.
  modulation scales and shifts the features of each size.
  """

  patch: int
  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, shape, modulation, image, origin):
    factors = _factors(self.patch)
    x = self._modulate("tokens", layers.norm("norm", self.dtype)(x), modulation)
    x = layers.Linear(self.channels, use_bias=True, dtype=self.dtype, name="project")(x)
    x = x.reshape(len(x), *shape, self.channels)
    images = [image]
    for factor in factors[:0:-1]:
      images.append(_shrink(images[-1], factor))
    x = _with_grain(x, origin // self.patch, 0)
    cell = self.patch  # pixels
    for level, (factor, small) in enumerate(zip(factors, images[::-1], strict=True), 1):
      cell //= factor
      x = jnp.concatenate([enlarge(x, factor), small], axis=-1).astype(self.dtype)
      x = _with_grain(x, origin // cell, level)
      features = max(self.channels >> level, _LEAST_CHANNELS)
      for name in (f"conv_{level}a", f"conv_{level}b"):
        x = nn.gelu(self._conv(name, x, features))
      x = self._modulate(f"level_{level}", x, modulation)
    return self._conv("rgb", x, 3, kernel_init=nn.initializers.zeros).astype(jnp.float32)

  def _conv(self, name, x, features, **options):
    """A convolution of 3x3. At the edges what its taps find within the image stands for the rest
    (partial convolution, arXiv:1811.11718): zeros alone darken a frame. Padding by hand takes
    longer: XLA for CPUs is 7 times as slow in convolutions without padding of their own."""
    options |= {"use_bias": False, "dtype": self.dtype, "name": name}
    x = nn.Conv(features, (3, 3), **options)(x)
    bias = self.param(f"{name}_bias", nn.initializers.zeros, (features,))
    rows, columns = (_shares(n) for n in x.shape[1:3])
    return x / (rows[:, None, None] * columns[:, None]).astype(x.dtype) + bias.astype(x.dtype)

  def _modulate(self, name, x, modulation):
    """x [B, …, F] scaled and shifted, by nothing at the start (arXiv:1709.07871)."""
    table = layers.Linear(
      2 * x.shape[-1], use_bias=True, init_std=layers.ZEROS, dtype=self.dtype, name=f"{name}_scale"
    )(nn.silu(modulation))
    table = table.reshape(len(table), *(1,) * (x.ndim - 2), -1)
    shift, scale = jnp.split(table, 2, axis=-1)
    return x * (1.0 + scale) + shift


def _shares(n):
  """How many of three neighbours each of n places in a row has, as a share; float32 [n]."""
  counts = np.full(n, 3)
  counts[0] -= 1
  counts[-1] -= 1
  return (counts / 3).astype(np.float32)


def _factors(patch):
  """What a patch is the product of, twos last."""
  twos = []
  while patch % 2 == 0:
    twos.append(2)
    patch //= 2
  return ([patch] if patch > 1 else []) + twos


def _shrink(images, factor):
  """Means over squares of images [B, H, W, C]."""
  b, height, width, c = images.shape
  squares = images.reshape(b, height // factor, factor, width // factor, factor, c)
  return jnp.mean(squares, axis=(2, 4))


def _with_grain(x, origin, seed):
  """x [B, H, W, C] with a channel of grain beside the others."""
  noise = jnp.broadcast_to(grain(x.shape[1:3], origin, seed)[..., None], (*x.shape[:3], 1))
  return jnp.concatenate([x, noise.astype(x.dtype)], axis=-1)


def grain(shape, origin, seed):
  """Noise of mean 0 and variance 1 for the pixels (y, x) of an image [H, W] that begins at
  origin int [2]; float32. A pixel's depends on its place and the seed alone: a hash (MurmurHash3's
  last step, twice), for jax.random gives an array its numbers by its shape."""
  rows, columns = (
    jnp.arange(n).astype(jnp.uint32) + start.astype(jnp.uint32)
    for n, start in zip(shape, origin, strict=True)
  )
  mixed = _mix(rows[:, None] * np.uint32(0x9E3779B1) + np.uint32(seed))
  mixed = _mix(mixed ^ (columns * np.uint32(0x85EBCA77)))
  return (mixed.astype(jnp.float32) / 2.0**31 - 1.0) * 3.0**0.5


def _mix(x):
  """uint32 → uint32, each bit of the result depending on all bits."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    x = (x ^ (x >> shift)) * np.uint32(factor)
  return x


def enlarge(x, factor):
  """x [B, H, W, C] `factor` times as large, linear between the centres of its cells."""
  for axis in (1, 2):
    count = x.shape[axis]
    edges = [(0, 0)] * 4
    edges[axis] = (1, 1)
    padded = jnp.pad(x, edges, mode="edge")
    before, after = (lax.slice_in_dim(padded, i, i + count, axis=axis) for i in (0, 2))
    parts = []
    for i in range(factor):
      place = (i + 0.5) / factor - 0.5  # from the centre of the cell, in cells
      other = before if place < 0 else after
      parts.append((1 - abs(place)) * x + abs(place) * other)
    sizes = (*x.shape[:axis], count * factor, *x.shape[axis + 1 :])
    x = jnp.stack(parts, axis=axis + 1).reshape(sizes)
  return x
