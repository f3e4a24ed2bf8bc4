"""The Encoder: maps an image to a grid of latents."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from imgtx_jax.models import layers, transformer


class Encoder(nn.Module):
  """Maps images [B, H, W, 3] in [-1, 1] to latents float32 [B, N, C] in raster order.

  N = (H / patch)(W / patch), C = code_dim.
  trunk holds the keyword hyperparameters of Transformer other than layers and dtype.
  """

  patch: int
  width: int
  layers: int
  code_dim: int
  trunk: Mapping[str, Any]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images):
    h, w = images.shape[1] // self.patch, images.shape[2] // self.patch
    x = layers.patchify(images, self.patch)  # [B, N, p·p·3]
    x = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="embed")(x)
    rope = layers.rope_table(layers.grid_coords(h, w), self.width // self.trunk["heads"])
    x, _ = transformer.Transformer(self.layers, dtype=self.dtype, name="transformer", **self.trunk)(
      x, transformer.Context(rope=rope, shape=(h, w))
    )
    x = layers.norm("norm", self.dtype)(x)
    return layers.Linear(self.code_dim, use_bias=True, dtype=self.dtype, name="project")(x).astype(
      jnp.float32
    )
