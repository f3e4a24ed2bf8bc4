"""The Generator: one Transformer that decodes, generates and stylizes, by what it is given.

| role | grid | memory | modulation |
|---|---|---|---|
| tokenizer's decoder | all N dequantised codes | none | none |
| adversarial generator | the first k codes, a mask token elsewhere | GPT states | noise and class |
| stylizer | the content's latents | style tokens | style statistics |

A stylizer ends in another head: it draws a change to an image (see retouch), not the image.
"""

import functools
import math
from collections import abc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers, transformer
from imgtx_jax.models.edit_head import RetouchHead

_WAVES = 4  # each way, of what varies slowly over the grid


class PatchHead(nn.Module):
  """Tokens [B, h·w, D] → image [B, h·p, w·p, 3]: linear per patch, then two light convolutions.

  A bare linear head leaves a visible grid. overlap: a token draws twice its patch each way, fading
  out into its neighbours' (as overlap-add of windowed signals), so that nothing has to be continued
  across a border. The convolutions run over the rendered features of all patches.
  """

  patch: int
  channels: int
  overlap: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, shape):
    x = layers.norm("norm", self.dtype)(x)
    side = (2 if self.overlap else 1) * self.patch
    x = layers.Linear(side**2 * self.channels, use_bias=True, dtype=self.dtype, name="project")(x)
    # [B, H, W, F]
    x = overlap_add(x, side, shape) if self.overlap else layers.unpatchify(x, self.patch, shape)
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv")(x)
    x = x + nn.gelu(h)
    return nn.Conv(3, (3, 3), dtype=self.dtype, name="rgb")(x).astype(jnp.float32)


def overlap_add(patches, side, shape):
  """Patches [B, h·w, s·s·F], centred on the cells of a grid (h, w) of half their side s, as images
  [B, h·s/2, w·s/2, F]: their sum under a triangular window, whose weights add up to 1."""
  b, (h, w), half = patches.shape[0], shape, side // 2
  ramp = (np.arange(half) + 0.5) / half
  window = np.concatenate([ramp, ramp[::-1]])
  x = patches.reshape(b, h, w, 2, half, 2, half, -1)
  x = x * (window.reshape(2, half, 1, 1, 1) * window.reshape(2, half, 1)).astype(x.dtype)
  # A quarter of a patch is a half's square: quarters (i, j) lie i down and j across.
  total = sum(
    jnp.pad(x[:, :, :, i, :, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0), (0, 0), (0, 0)))
    for i in (0, 1)
    for j in (0, 1)
  )  # [B, h + 1, w + 1, s/2, s/2, F]
  image = total.swapaxes(2, 3).reshape(b, (h + 1) * half, (w + 1) * half, -1)
  start = half // 2
  image = image[:, start : start + h * half, start : start + w * half]
  # At the edges of the image a neighbour is missing.
  sums = [_window_sums(n, window)[start : start + n * half] for n in shape]
  return image / (sums[0][:, None, None] * sums[1][:, None]).astype(image.dtype)


def _window_sums(n, window):
  """The weights at the places of n windows, half their length apart."""
  half = len(window) // 2
  total = np.zeros((n + 1) * half)
  for i in range(n):
    total[i * half : (i + 2) * half] += window
  return total


class Generator(nn.Module):
  """grid [B, N, C], memory [B, M, D'] or None, modulation [B, S] or None → image [B, H, W, 3].

  At the depths in taps (layers after which it happens, ascending, below `layers`) it renders an
  intermediate image, the conditioned image, embeds it back and goes on. Returns the last image and
  a tuple of (conditioned image [B, H, W, 3], its condition vectors [B, N, D]), one a tap.

  known [B, N] (only with mask_token): False where the code is not known and the learned mask token
  of that place stands for it. memory_mask [B, M]: False where a memory token must not be seen.
  memory_coords int [M, 2]: rows and columns the memory tokens speak of, None if they have none.
  shape: (h, w) of the grid; a square by default. With retouch_channels the last image is a change
  to an image: retouch is what RetouchHead takes of it, (image, detail, gains).
  """

  patch: int
  width: int
  layers: int
  trunk: abc.Mapping[str, Any]
  taps: tuple[int, ...] = ()
  head_channels: int = 16
  head_overlap: bool = False
  memory: bool = False
  modulated: bool = False
  retouch_channels: int = 0
  mask_token: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    grid,
    memory=None,
    modulation=None,
    *,
    known=None,
    memory_mask=None,
    memory_coords=None,
    shape=None,
    retouch=None,
  ):
    shape = shape or (math.isqrt(grid.shape[1]),) * 2
    head_dim = self.width // self.trunk["heads"]
    context = transformer.Context(
      rope=layers.rope_table(layers.grid_coords(*shape), head_dim),
      memory=memory,
      memory_mask=memory_mask,
      memory_rope=(None if memory_coords is None else layers.rope_table(memory_coords, head_dim)),
      modulation=modulation,
      shape=tuple(shape),
    )
    if self.mask_token:
      token = self._mask_tokens(modulation, shape, grid.shape[-1])
      if known is not None:
        grid = jnp.where(known[..., None], grid, token)
    x = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="embed")(grid)
    head = functools.partial(
      PatchHead, self.patch, self.head_channels, self.head_overlap, dtype=self.dtype
    )
    taps = []
    for i, (start, end) in enumerate(zip((0, *self.taps), (*self.taps, self.layers), strict=True)):
      if i:
        conditioned = head(name=f"tap_head_{i}")(x, shape)
        vectors = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name=f"tap_embed_{i}")(
          layers.patchify(conditioned, self.patch)
        )
        gate = self.param(f"tap_gate_{i}", nn.initializers.zeros, (self.width,))
        x = x + vectors * gate.astype(self.dtype)
        taps.append((conditioned, vectors))
      x, _ = transformer.Transformer(
        end - start,
        memory=self.memory,
        modulated=self.modulated,
        dtype=self.dtype,
        name=f"segment_{i}",
        **self.trunk,
      )(x, context)
    if self.retouch_channels:
      retouching = RetouchHead(self.patch, self.retouch_channels, dtype=self.dtype, name="retouch")
      return retouching(x, shape, modulation, *retouch), tuple(taps)
    return head(name="head")(x, shape), tuple(taps)

  def _mask_tokens(self, modulation, shape, channels):
    """What stands on the grid where no code is known: unit vectors, as codes are; [1 or B, N, C].

    One token for each place: equal ones would stay equal through every layer, for rotary positions
    only weigh values, and an image without any known code would be one patch repeated. Noise and
    class bend them directly, for the layers' own modulation starts at zero; slowly over the grid,
    or again one patch would be repeated.
    """
    count = shape[0] * shape[1]
    token = self.param("mask_token", smooth_tokens(shape), (count, channels))[None]
    if self.modulated:
      bend = layers.Linear(_WAVES**2 * channels, name="mask_modulation")(modulation)
      bend = bend.reshape(len(bend), _WAVES**2, channels)
      token = token + 0.3 * (2 / _WAVES) * jnp.einsum("nw,bwc->bnc", smooth_basis(shape), bend)
    return token / jnp.sqrt(jnp.sum(token**2, axis=-1, keepdims=True) + 1e-6)


def smooth_basis(shape):
  """The lowest cosines over a grid (h, w), _WAVES each way; float32 [h·w, _WAVES²]."""
  waves = [np.cos(np.pi * (np.arange(n)[:, None] + 0.5) / n * np.arange(_WAVES)) for n in shape]
  return np.einsum("ia,jb->ijab", *waves).reshape(math.prod(shape), -1).astype(np.float32)


def smooth_tokens(shape, std=1.0):
  """An initializer of tokens [h·w, C] that vary slowly over the grid (h, w): random mixtures of
  smooth_basis, each channel of standard deviation about std."""

  def init(key, param_shape, dtype=jnp.float32):
    mix = jax.random.normal(key, (_WAVES**2, param_shape[1]), dtype)
    return jnp.asarray(smooth_basis(shape), dtype) @ mix * (2 * std / _WAVES)

  return init


class Adapter(nn.Module):
  """Condition vectors [B, M, D] → the same and a residual of them, zero at the start."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, states):
    width = states.shape[-1]
    x = layers.norm("norm", self.dtype)(states)
    x = nn.silu(layers.Linear(width, use_bias=True, dtype=self.dtype, name="hidden")(x))
    x = layers.Linear(width, init_std=layers.ZEROS, dtype=self.dtype, name="project")(x)
    return states + x


class Mapping(nn.Module):
  """Noise [B, Z] and labels int [B] (classes = the null class) → modulation [B, S].

  The mapping network of StyleGAN (arXiv:1812.04948): its output is the space w of truncation.
  """

  width: int
  classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, noise, labels):
    label = nn.Embed(
      self.classes + 1, self.width, embedding_init=nn.initializers.normal(1.0), name="label"
    )(labels)
    x = jnp.concatenate([noise, label], axis=-1).astype(self.dtype)
    x = nn.silu(layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="hidden")(x))
    return layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="project")(x).astype(
      jnp.float32
    )

  def modulation(self, params, noise, labels, w_scale=1.0):
    """Modulation [B, S] from the mapping's parameters; w_scale s is guidance: w₀ + s (w − w₀),
    where w₀ is that of the null class and the same noise."""
    w = self.apply({"params": params}, noise, labels)
    if w_scale == 1.0:
      return w
    none = self.apply({"params": params}, noise, jnp.full_like(labels, self.classes))
    return none + w_scale * (w - none)
