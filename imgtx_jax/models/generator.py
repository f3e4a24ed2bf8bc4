"""The Generator: one Transformer in three roles, which differ in its inputs.

| role | grid | memory | modulation |
|---|---|---|---|
| tokenizer's decoder | all N dequantised codes | none | none |
| adversarial generator | the first k codes, a mask token elsewhere | GPT states | noise and class |
| stylizer | the content's latents | style tokens | style statistics |

The stylizer has another head, EditHead: it predicts a change to an image.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers, transformer
from imgtx_jax.models.edit_head import EditHead

_WAVES = 4  # cosines per direction in smooth_basis


class PatchHead(nn.Module):
  """Maps tokens [B, h·w, D] to an image [B, h·p, w·p, 3], where p = patch.

  A linear layer renders `channels` features per pixel of each patch; two light convolutions over
  all patches follow, since a linear head alone leaves a visible grid. With `overlap` a token
  renders a square of side 2p that fades out over its neighbours (see overlap_add).
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
    conv = functools.partial(
      nn.Conv, kernel_size=(3, 3), dtype=self.dtype, precision=layers.precision(self.dtype)
    )
    x = x + nn.gelu(conv(self.channels, name="conv")(x))
    return conv(3, name="rgb")(x).astype(jnp.float32)


def overlap_add(patches, side, shape):
  """Sums patches that overlap by half under a triangular window whose weights sum to 1.

  Args:
    patches: [B, h·w, s·s·F], centred on the cells, of side s/2, of a grid.
    side: s, the side of a patch in pixels.
    shape: (h, w) of the grid.

  Returns:
    Images [B, h·s/2, w·s/2, F].
  """
  b, (h, w), half = patches.shape[0], shape, side // 2
  ramp = (np.arange(half) + 0.5) / half
  window = np.concatenate([ramp, ramp[::-1]])
  x = patches.reshape(b, h, w, 2, half, 2, half, -1)
  x = x * (window.reshape(2, half, 1, 1, 1) * window.reshape(2, half, 1)).astype(x.dtype)
  # A patch has 2 × 2 quarters of side s/2: quarter (i, j) lies i cells down and j cells right.
  total = sum(
    jnp.pad(x[:, :, :, i, :, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0), (0, 0), (0, 0)))
    for i in (0, 1)
    for j in (0, 1)
  )  # [B, h + 1, w + 1, s/2, s/2, F]
  image = total.swapaxes(2, 3).reshape(b, (h + 1) * half, (w + 1) * half, -1)
  start = half // 2
  image = image[:, start : start + h * half, start : start + w * half]
  # At the image's edges a neighbour is missing: divide by the weights that are there.
  sums = [_window_sums(n, window)[start : start + n * half] for n in shape]
  return image / (sums[0][:, None, None] * sums[1][:, None]).astype(image.dtype)


def _window_sums(n, window):
  """Returns the sum [(n + 1) · half] of n windows placed half their length apart."""
  half = len(window) // 2
  total = np.zeros((n + 1) * half)
  for i in range(n):
    total[i * half : (i + 2) * half] += window
  return total


class Generator(nn.Module):
  """Renders an image from a grid of vectors, with an optional memory and modulation.

  taps are layer counts, ascending and below depth. After each it renders an intermediate image (the
  conditioned image), embeds it back and goes on. With retouch_channels > 0 it ends in an EditHead.

  Call args:
    grid: [B, N, C], dequantised codes or latents in raster order.
    memory: [B, M, D'] for cross-attention, or None.
    modulation: [B, S], or None.
    known: bool [B, N], only with mask_token or marks_guesses. Where False, the position's mask
      token replaces the grid's vector, or a learned vector marks it as a guess.
    memory_length: int [B], the memory tokens that may be attended to, the first ones; None: all.
    memory_coords: int [M, 2], row and column of each memory token, or None if they have none.
    shape: (h, w) of the grid; square by default.
    edit_inputs: (image, detail, gains) for the EditHead.

  Returns:
    The image [B, H, W, 3], or the EditHead's change; and a tuple with, for each tap, (conditioned
    image [B, H, W, 3], its condition vectors [B, N, D]).
  """

  patch: int
  width: int
  depth: int
  block: transformer.BlockConfig
  taps: tuple[int, ...] = ()
  head_channels: int = 16
  head_overlap: bool = False
  retouch_channels: int = 0
  mask_token: bool = False
  marks_guesses: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    grid,
    memory=None,
    modulation=None,
    *,
    known=None,
    memory_length=None,
    memory_coords=None,
    shape=None,
    edit_inputs=None,
  ):
    shape = shape or (math.isqrt(grid.shape[1]),) * 2
    head_dim = self.width // self.block.num_heads
    context = transformer.Context(
      rope=layers.rope_table(layers.grid_coords(*shape), head_dim),
      memory=memory,
      memory_length=memory_length,
      memory_rope=(None if memory_coords is None else layers.rope_table(memory_coords, head_dim)),
      modulation=modulation,
      shape=tuple(shape),
    )
    if self.mask_token:
      token = self._mask_tokens(modulation, shape, grid.shape[-1])
      if known is not None:
        grid = jnp.where(known[..., None], grid, token)
    x = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="embed")(grid)
    if self.marks_guesses:
      guess = self.param("guess", nn.initializers.zeros, (self.width,))
      if known is not None:
        x = x + jnp.where(known[..., None], 0.0, guess).astype(self.dtype)
    head = functools.partial(
      PatchHead, self.patch, self.head_channels, self.head_overlap, dtype=self.dtype
    )
    taps = []
    for i, (start, end) in enumerate(zip((0, *self.taps), (*self.taps, self.depth), strict=True)):
      if i:
        conditioned = head(name=f"tap_head_{i}")(x, shape)
        vectors = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name=f"tap_embed_{i}")(
          layers.patchify(conditioned, self.patch)
        )
        gate = self.param(f"tap_gate_{i}", nn.initializers.zeros, (self.width,))
        x = x + vectors * gate.astype(self.dtype)
        taps.append((conditioned, vectors))
      x, _ = transformer.Transformer(
        end - start, self.block, dtype=self.dtype, name=f"segment_{i}"
      )(x, context)
    if self.retouch_channels:
      edit_head = EditHead(self.patch, self.retouch_channels, dtype=self.dtype, name="retouch")
      return edit_head(x, shape, modulation, *edit_inputs), tuple(taps)
    return head(name="head")(x, shape), tuple(taps)

  def _mask_tokens(self, modulation, shape, channels):
    """Returns the mask tokens [1 or B, N, C], unit vectors as codes are.

    Each position has its own token. Equal tokens would stay equal through every layer, since rotary
    positions change only attention weights, and an image without known codes would repeat one
    patch. The modulation also shifts the tokens directly, because the layers' modulation starts at
    zero. This shift varies slowly over the grid.
    """
    count = shape[0] * shape[1]
    token = self.param("mask_token", smooth_tokens(shape), (count, channels))[None]
    if self.block.modulated:
      shift = layers.Linear(_WAVES**2 * channels, name="mask_modulation")(modulation)
      shift = shift.reshape(len(shift), _WAVES**2, channels)
      shift = jnp.einsum("nw,bwc->bnc", smooth_basis(shape), shift, precision="highest")
      token = token + 0.3 * (2 / _WAVES) * shift
    return token / jnp.sqrt(jnp.sum(token**2, axis=-1, keepdims=True) + 1e-6)


def smooth_basis(shape):
  """Returns the lowest cosines over a grid (h, w), _WAVES per direction; float32 [h·w, _WAVES²]."""
  waves = [np.cos(np.pi * (np.arange(n)[:, None] + 0.5) / n * np.arange(_WAVES)) for n in shape]
  return np.einsum("ia,jb->ijab", *waves).reshape(math.prod(shape), -1).astype(np.float32)


def smooth_tokens(shape, std=1.0):
  """Returns an initializer of tokens [h·w, C] that vary slowly over the grid (h, w).

  Tokens are random mixtures of smooth_basis; each channel has a standard deviation of about std.
  """

  def init(key, param_shape, dtype=jnp.float32):
    mix = jax.random.normal(key, (_WAVES**2, param_shape[1]), dtype)
    basis = jnp.asarray(smooth_basis(shape), dtype)
    return jnp.matmul(basis, mix, precision="highest") * (2 * std / _WAVES)

  return init


class Adapter(nn.Module):
  """Adds a learned residual to condition vectors [B, M, D]; the residual is zero at the start."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, states):
    width = states.shape[-1]
    x = layers.norm("norm", self.dtype)(states)
    x = nn.silu(layers.Linear(width, use_bias=True, dtype=self.dtype, name="hidden")(x))
    x = layers.Linear(width, init_std=layers.ZEROS, dtype=self.dtype, name="project")(x)
    return states + x


class Mapping(nn.Module):
  """Maps noise [B, Z] and labels int [B] to modulation float32 [B, S], S = width.

  Label `classes` is the null class. This is the mapping network of StyleGAN (arXiv:1812.04948):
  its output space is w, in which guidance and truncation work.
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
    """Returns modulation [B, S] with guidance.

    Args:
      params: the mapping's parameters.
      noise: [B, Z].
      labels: int [B].
      w_scale: s in w₀ + s (w − w₀), where w₀ has the null class and the same noise.
    """
    w = self.apply({"params": params}, noise, labels)
    if w_scale == 1.0:
      return w
    null = self.apply({"params": params}, noise, jnp.full_like(labels, self.classes))
    return null + w_scale * (w - null)
