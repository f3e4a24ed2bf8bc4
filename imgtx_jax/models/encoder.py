"""The Encoder: maps an image to a grid of latents."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from imgtx_jax.models import layers, transformer


class Encoder(nn.Module):
  """Maps images [B, H, W, 3] in [-1, 1] to latents float32 [B, N, C] in raster order.

  N = (H / patch)(W / patch), C = code_dim.
  """

  patch: int
  width: int
  depth: int
  code_dim: int
  block: transformer.BlockConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images):
    h, w = images.shape[1] // self.patch, images.shape[2] // self.patch
    x = layers.patchify(images, self.patch)  # [B, N, p·p·3]
    x = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="embed")(x)
    rope = layers.rope_table(layers.grid_coords(h, w), self.width // self.block.num_heads)
    x, _ = transformer.Transformer(self.depth, self.block, dtype=self.dtype, name="transformer")(
      x, transformer.Context(rope=rope, shape=(h, w))
    )
    x = layers.norm("norm", self.dtype)(x)
    return layers.Linear(self.code_dim, use_bias=True, dtype=self.dtype, name="project")(x).astype(
      jnp.float32
    )
