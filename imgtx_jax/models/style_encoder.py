"""The StyleEncoder: maps a style image to memory tokens and a modulation vector."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgtx_jax.models import attention, color_transfer, layers, texture_synthesis, transformer

_VARIANCE = 1e-4  # added to variances: flat images have none


class Style(NamedTuple):
  """Styles of B images.

  tokens: [B, M, D]. modulation: [B, S]. colors: ColorStatistics. texture: Texture. weight: [B] in
  [0, 1], the sum of the weights of real styles; the null style's part is 1 − weight.

  Mixtures and strengths of styles are weighted sums of Styles. Tokens can be summed because the
  m-th tokens of all images come from the same query.
  """

  tokens: Any
  modulation: Any
  colors: color_transfer.ColorStatistics
  texture: texture_synthesis.Texture
  weight: Any


class StyleEncoder(nn.Module):
  """Maps images [B, H, W, 3] in [-1, 1], H and W multiples of patch, to a Style.

  Tokens: num_tokens learned queries read a Transformer's features of the patches by
  cross-attention.
  Modulation: an MLP of the mean, deviation, skew and kurtosis of these features over the positions
  (HSI 2025 uses VGG's features), so that inference needs no other network.
  null(batch) is the learned style that leaves a content image as it is.
  """

  patch: int
  width: int
  depth: int
  num_tokens: int
  modulation_dim: int
  block: transformer.BlockConfig
  dtype: Any = jnp.float32

  def setup(self):
    self.null_tokens = self.param(
      "null_tokens", nn.initializers.normal(0.02), (self.num_tokens, self.width)
    )
    self.null_modulation = self.param("null_modulation", nn.initializers.zeros, self._modulation())
    self.queries = self.param("queries", nn.initializers.normal(1.0), (self.num_tokens, self.width))
    linear = dict(use_bias=True, dtype=self.dtype)
    self.embed = layers.Linear(self.width, **linear)
    self.transformer = transformer.Transformer(self.depth, self.block, dtype=self.dtype)
    self.read = attention.Attention(self.block.num_heads, cross=True, dtype=self.dtype)
    self.feature_norm = layers.norm(None, self.dtype)
    self.token_norm = layers.norm(None, self.dtype)
    self.project = layers.Linear(self.width, **linear)
    self.hidden = layers.Linear(2 * self.modulation_dim, **linear)
    self.modulate = layers.Linear(self.modulation_dim, **linear)

  def _modulation(self):
    return (self.modulation_dim,)

  def __call__(self, images):
    shape = (images.shape[1] // self.patch, images.shape[2] // self.patch)
    embedded = self.embed(layers.patchify(images, self.patch))  # [B, N, D]
    rope = layers.rope_table(layers.grid_coords(*shape), self.width // self.block.num_heads)
    x, _ = self.transformer(embedded, transformer.Context(rope=rope, shape=shape))
    x = self.feature_norm(x)
    queries = jnp.broadcast_to(self.queries, (len(images), *self.queries.shape))
    tokens, _ = self.read(queries.astype(self.dtype), transformer.Context(memory=x))
    tokens = self.project(self.token_norm(tokens))
    # The embedding is linear in the pixels: its moments describe colours and small textures.
    moments = jnp.concatenate([statistics(embedded), statistics(x)], axis=-1)
    modulation = self.modulate(nn.silu(self.hidden(moments)))
    return Style(
      tokens.astype(jnp.float32),
      modulation.astype(jnp.float32),
      color_transfer.measure(images),
      texture_synthesis.extract(images, self.patch),
      jnp.ones(len(images)),
    )

  def null(self, batch):
    """Returns the null style, `batch` times."""
    return Style(
      jnp.broadcast_to(self.null_tokens, (batch, *self.null_tokens.shape)),
      jnp.broadcast_to(self.null_modulation, (batch, self.modulation_dim)),
      color_transfer.zeros(batch),
      texture_synthesis.zeros(batch, self.patch),
      jnp.zeros(batch),
    )


def statistics(features):
  """Returns mean, deviation, skew and kurtosis over the positions of features; float32 [B, 4 D].

  features: [B, N, D]. Skew and kurtosis have heavy tails and are squashed by asinh.
  """
  x = features.astype(jnp.float32)
  mean = jnp.mean(x, axis=1, keepdims=True)
  deviation = jnp.sqrt(jnp.mean((x - mean) ** 2, axis=1, keepdims=True) + _VARIANCE)
  z = (x - mean) / deviation
  skew = jnp.arcsinh(jnp.mean(z**3, axis=1))
  kurtosis = jnp.arcsinh(jnp.mean(z**4, axis=1) - 3.0)
  return jnp.concatenate([mean[:, 0], deviation[:, 0], skew, kurtosis], axis=-1)


def mix(styles, weights):
  """Returns the weighted sum of Styles with equal B; each weight is a number or [B]."""

  def add(*parts):
    total = 0.0
    for part, weight in zip(parts, weights, strict=True):
      weight = jnp.asarray(weight, jnp.float32)
      total = total + part * weight.reshape(weight.shape + (1,) * (part.ndim - weight.ndim))
    return total

  return jax.tree.map(add, *styles)


def unweighted(style):
  """Returns (colors, texture) of a Style divided by its weight.

  The null style's are zero, so this undoes the effect of mixing with it.
  """
  weight = jnp.maximum(style.weight, 1e-6)

  def divide(part):
    return part / weight.reshape(-1, *(1,) * (part.ndim - 1))

  return jax.tree.map(divide, (style.colors, style.texture))


def broadcast_batch(style, batch):
  """Repeats a Style with B = 1 `batch` times; returns one with B = `batch` unchanged."""

  def widen(part):
    return jnp.broadcast_to(part, (batch, *part.shape[1:])) if part.shape[0] == 1 else part

  return jax.tree.map(widen, style)
