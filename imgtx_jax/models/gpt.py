"""The GPT: a causal Transformer over the codes of an image (LlamaGen's, arXiv:2406.06525).

Its hidden states are the condition vectors: state t has seen the class and t codes, and predicts
the next. Codes come in raster order; logits and states come in the GPT's own order of codes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers, transformer


def code_order(order, shape):
  """The permutation of a grid's codes: entry t is the raster index of the t-th code; int [N].

  "raster" is row by row. "spread" goes from coarse to fine: grids of halving stride, each in two
  steps (first the centres of the coarser grid's squares, then the rest), so that the first k codes
  cover the whole image.
  """
  height, width = shape
  if order == "raster":
    return np.arange(height * width)
  if order != "spread":
    raise ValueError(f"unknown order of codes {order!r}: raster or spread")
  rows, columns = np.divmod(np.arange(height * width), width)
  # Shifting the lattice by a third centres its coarse levels as well as nesting allows.
  rows, columns = rows - height // 3, columns - width // 3
  stride = 1
  while stride < max(height, width):
    stride *= 2
  rank = np.full(height * width, -1)
  level = 0
  while stride >= 1:
    on_grid = (rows % stride == 0) & (columns % stride == 0)
    centres = on_grid & (rows % (2 * stride) != 0) & (columns % (2 * stride) != 0)
    for members in (centres, on_grid):
      rank[members & (rank < 0)] = level
      level += 1
    stride //= 2
  return np.argsort(rank, kind="stable")


class GPT(nn.Module):
  """Codes int [B, N] in raster order, labels int [B] (`classes` is the null class) → logits
  float32 [B, N, V] and condition vectors [B, N, D], both in the order of codes.

  Decoding (scan=False, caches given): codes [B, 1] is the code before position `position` in the
  order of codes (any value at position 0, where the class token stands), and the outputs are those
  of that one position, with the new caches third.

  target_position adds a learned embedding of the place that each state predicts (RAR,
  arXiv:2411.00776): outside raster order the place is not told by the code before it. With it, an
  example may have an order of its own: orders int [B, N], as code_order gives them.
  The class token has no place on the grid: its rotated queries and keys are zero vectors, as in
  the reference.
  """

  codebook_size: int
  classes: int
  width: int
  layers: int
  shape: tuple[int, int]
  trunk: Mapping[str, Any]
  order: str = "raster"
  target_position: bool = False
  token_dropout: float = 0.0
  residual_dropout: float = 0.0
  ffn_dropout: float = 0.0
  drop_path: float = 0.0
  init_std: float = 0.02
  scan: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, codes, labels, *, orders=None, example_index=None, caches=None, position=None):
    init = nn.initializers.normal(self.init_std)
    label = nn.Embed(self.classes + 1, self.width, embedding_init=init, name="label")
    embed = nn.Embed(self.codebook_size, self.width, embedding_init=init, name="codes")
    first = label(labels)[:, None]  # [B, 1, D]
    places = jnp.asarray(self.code_order()) if orders is None else orders  # [N] or [B, N]
    if caches is None:
      sequence = jnp.take_along_axis(codes, jnp.broadcast_to(places, codes.shape), axis=1)
      x = jnp.concatenate([first, embed(sequence[:, :-1])], axis=1)  # [B, N, D]
      rope = self.rope(places)
    else:
      x = jnp.where(position == 0, first, embed(codes))  # [B, 1, D]
      rope = self.rope(places)[:, position][:, None]
    if self.target_position:
      count = self.shape[0] * self.shape[1]
      target = self.param("target_position", init, (count, self.width))  # of raster places
      x = x + target[places if caches is None else places[position]]
    x = x.astype(self.dtype)
    x = layers.Dropout(self.token_dropout, name="token_dropout")(x, example_index)
    context = transformer.Context(rope=rope, example_index=example_index, position=position)
    x, caches = transformer.Transformer(
      self.layers,
      causal=True,
      residual_dropout=self.residual_dropout,
      ffn_dropout=self.ffn_dropout,
      drop_path=self.drop_path,
      init_std=self.init_std,
      scan=self.scan,
      dtype=self.dtype,
      name="transformer",
      **self.trunk,
    )(x, context, caches)
    states = layers.norm("norm", self.dtype)(x)
    logits = layers.Linear(
      self.codebook_size,
      init_std=layers.ZEROS,
      dtype=self.dtype,
      name="logits",
    )(states).astype(jnp.float32)
    return (logits, states) if caches is None else (logits, states, caches)

  def code_order(self):
    """Entry t is the raster index of the t-th code; int [N]."""
    return code_order(self.order, self.shape)

  def coords(self):
    """Row and column of the code that each state predicts; int [N, 2]."""
    return layers.grid_coords(*self.shape)[self.code_order()]

  def rope(self, places):
    """Angles [2, …, N, K / 2] of the inputs when states predict the codes at places [… , N]: zero
    cosines and sines for the class token, then those of the codes before."""
    table = layers.rope_table(layers.grid_coords(*self.shape), self.width // self.trunk["heads"])
    table = jnp.asarray(table)[:, places]
    return jnp.concatenate([jnp.zeros_like(table[..., :1, :]), table[..., :-1, :]], axis=-2)

  def init_cache(self, batch, length):
    """Empty caches for decoding `batch` images up to `length` positions."""
    heads = self.trunk["heads"]
    return transformer.init_cache(
      self.layers, length, batch, heads, self.width // heads, self.dtype
    )
