"""The stylizer's head: from tokens to a change of the image that they were read from."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers
from imgtx_jax.models.texture_synthesis import bands, enlarge, factors, shrink

_LEAST_CHANNELS = 16
_SHARES = (0.5, 0.85)  # of the style's detail and of the image's own, at the start


class RetouchHead(nn.Module):
  """Tokens [B, h·w, D], modulation [B, S], an image and detail for it, both [B, h·p, w·p, 3],
  and gains [B, L] → a change to the image of its shape, float32.

  From the grid to the pixels, mostly in steps of two: features are enlarged linearly, joined by the
  image and the detail at that size, and convolved twice (after U-Net, arXiv:1505.04597); channels
  at the grid, half as many after each step. At each size they say, for every place, how much of the
  style's detail to lay there, how much of the image's own to keep, and what colour to add (the sum
  over sizes: after StyleGAN2's skips, arXiv:1912.04958). So fine detail follows the two images, and
  where tokens are alike there is no grid: a head of patches draws one pattern over and over.

  detail is a texture laid for the image (texture.lay). gains say how much stronger the image's own
  detail is to be, for each size from the pixels' up to the grid's (texture.gains).
  modulation scales and shifts the features of each size. At the start .85 of that joins half of the
  style's detail.
  """

  patch: int
  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, shape, modulation, image, detail, gains):
    steps = factors(self.patch)
    x = self._modulate("tokens", layers.norm("norm", self.dtype)(x), modulation)
    x = layers.Linear(self.channels, use_bias=True, dtype=self.dtype, name="project")(x)
    x = x.reshape(len(x), *shape, self.channels)
    images = [image]
    for factor in steps[:0:-1]:
      images.append(shrink(images[-1], factor))
    levels = list(zip(bands(image, self.patch), bands(detail, self.patch), strict=True))
    change = self._change(0, x.astype(self.dtype), *levels[0], gains[:, -1])
    for level, factor in enumerate(steps, 1):
      own, laid = levels[level]
      parts = enlarge(x, factor), images[-level], laid
      x = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)
      features = max(self.channels >> level, _LEAST_CHANNELS)
      for name in (f"conv_{level}a", f"conv_{level}b"):
        x = nn.gelu(self._conv(name, x, features))
      x = self._modulate(f"level_{level}", x, modulation)
      more = self._change(level, x, own, laid, gains[:, -1 - level])
      change = enlarge(change, factor) + more
    return change

  def _change(self, level, x, own, laid, gain):
    """What features x [B, H, W, F] change of a level: own and laid detail [B, H, W, 3]."""
    says = self._conv(f"say_{level}", x, 5, kernel_init=nn.initializers.zeros).astype(jnp.float32)
    theirs, kept = (share + says[..., 3 + i : 4 + i] for i, share in enumerate(_SHARES))
    kept = kept * gain[:, None, None, None]
    return says[..., :3] + theirs * laid + (kept - 1.0) * own

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
