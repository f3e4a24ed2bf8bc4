"""Predicts in one pass the codes that the GPT would sample one by one: seeded distillation.

The GPT picks code t by inverse CDF at a uniform u_t (sampling/autoregressive.py), so that all codes
of an image are a function of its label and its uniforms, however they depend on each other. That
function can be learned by a network that sees all uniforms at once, where codes predicted without
them could only be independent (parallel token prediction, arXiv:2512.21323; with another noise,
distilled decoding, arXiv:2412.17153).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers, transformer

_OCTAVES = 6  # of the Fourier features of a uniform


class CodePredictor(nn.Module):
  """A bidirectional Transformer from uniforms, known codes and a label to codes.

  Call args:
    uniforms: [B, N] in [0, 1), in raster order.
    codes: int [B, N] in raster order, looked at only where known.
    known: bool [B, N].
    labels: int [B]; `classes` is the null class.

  Returns:
    Logits float32 [B, N, V] of the codes in raster order.
  """

  codebook_size: int
  classes: int
  width: int
  depth: int
  shape: tuple[int, int]
  block: transformer.BlockConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, uniforms, codes, known, labels):
    init = nn.initializers.normal(0.02)
    drawn = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="uniforms")(
      fourier_features(uniforms)
    )
    given = nn.Embed(self.codebook_size, self.width, embedding_init=init, name="codes")(codes)
    x = jnp.where(known[..., None], given.astype(self.dtype), drawn)
    label = nn.Embed(self.classes + 1, self.width, embedding_init=init, name="label")(labels)
    places = self.param("places", init, (self.shape[0] * self.shape[1], self.width))
    x = x + (label[:, None] + places).astype(self.dtype)
    head_dim = self.width // self.block.num_heads
    rope = layers.rope_table(layers.grid_coords(*self.shape), head_dim)
    x, _ = transformer.Transformer(self.depth, self.block, dtype=self.dtype, name="transformer")(
      x, transformer.Context(rope=rope, shape=tuple(self.shape))
    )
    x = layers.norm("norm", self.dtype)(x)
    logits = layers.Linear(
      self.codebook_size, use_bias=True, init_std=0.02, dtype=self.dtype, name="logits"
    )(x)
    return logits.astype(jnp.float32)


def fourier_features(x):
  """Returns x in [0, 1) with sines and cosines of _OCTAVES octaves of it: [...] → [..., 13]."""
  angles = x[..., None] * (np.pi * 2.0 ** np.arange(_OCTAVES, dtype=np.float32))
  return jnp.concatenate([x[..., None], jnp.sin(angles), jnp.cos(angles)], axis=-1)
