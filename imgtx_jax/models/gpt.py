"""The GPT: a causal Transformer over the codes of an image (LlamaGen, arXiv:2406.06525).

Its hidden states are the condition vectors: state t depends on the class and the first t codes, and
predicts the next code. Input codes are in raster order; logits and states are in code order.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers, transformer


def code_order(order, shape):
  """Returns the order of a grid's codes: entry t is the raster index of the t-th code; int [N].

  Args:
    order: "raster" (row by row) or "spread" (coarse to fine: grids of halving stride, for each
      first the centres of the coarser grid's squares, then the rest, so that the first k codes
      cover the whole image).
    shape: (h, w) of the grid.

  Raises:
    ValueError: for another order.
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
  """Predicts each code of an image from its class and the codes before it.

  target_position adds a learned embedding of the grid position that each state predicts (RAR,
  arXiv:2411.00776), which the previous code does not determine outside raster order. The class
  token has no grid position: its rotated queries and keys are zero vectors, as in LlamaGen.
  block.dropout is also that of the input tokens; block.causal and block.init_std do not count.

  Call args:
    codes: int [B, N] in raster order. With caches: int [B, 1], the code before `position` in code
      order; any value at position 0, where the class token stands.
    labels: int [B]; `classes` is the null class.
    orders: int [B, N], a code order per example; needs target_position. By default all examples
      have code_order().
    example_index: int [B], the global index, for dropout.
    caches: from init_cache, for decoding one position at a time; needs scan=False.
    position: int scalar, the position to decode.

  Returns:
    Logits float32 [B, N, V] and condition vectors [B, N, D], in code order. With caches: those of
    the one position, [B, 1, …], and the new caches.
  """

  codebook_size: int
  classes: int
  width: int
  depth: int
  shape: tuple[int, int]
  block: transformer.BlockConfig
  order: str = "raster"
  target_position: bool = False
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
      target = self.param("target_position", init, (count, self.width))  # in raster order
      x = x + target[places if caches is None else places[position]]
    x = x.astype(self.dtype)
    x = layers.Dropout(self.block.dropout, name="token_dropout")(x, example_index)
    context = transformer.Context(rope=rope, example_index=example_index, position=position)
    block = dataclasses.replace(self.block, causal=True, init_std=self.init_std)
    x, caches = transformer.Transformer(
      self.depth, block, scan=self.scan, dtype=self.dtype, name="transformer"
    )(x, context, caches)
    states = layers.norm("norm", self.dtype)(x)
    logits = layers.Linear(
      self.codebook_size,
      init_std=layers.ZEROS,
      dtype=self.dtype,
      out_dtype=jnp.float32,
      name="logits",
    )(states)
    return (logits, states) if caches is None else (logits, states, caches)

  def code_order(self):
    """Returns the raster index of the t-th code; int [N]."""
    return code_order(self.order, self.shape)

  def coords(self):
    """Returns the row and column of the code that each state predicts; int [N, 2]."""
    return layers.grid_coords(*self.shape)[self.code_order()]

  def rope(self, places):
    """Returns the rotary table [2, …, N, K / 2] of the inputs for predicted positions [… , N].

    Input t is the code at places[t − 1]; input 0, the class token, gets zero cosines and sines.
    """
    table = layers.rope_table(layers.grid_coords(*self.shape), self.width // self.block.num_heads)
    table = jnp.asarray(table)[:, places]
    return jnp.concatenate([jnp.zeros_like(table[..., :1, :]), table[..., :-1, :]], axis=-2)

  def init_cache(self, batch, length):
    """Returns empty caches for decoding `batch` images up to `length` positions."""
    heads = self.block.num_heads
    return transformer.init_cache(self.depth, length, batch, heads, self.width // heads, self.dtype)
