"""Attention within neighbourhoods of a grid: its cost grows with the grid, not with its square.

The grid is cut into windows of w × w tokens. The tokens of a window see those of the 2w × 2w square
around it: every token sees w/2 tokens or more in every direction, so that windows leave no seams,
and a layer does to a token what it would do in any larger grid (but for the grid's edge).

Dimensions: B batch, N = h · w tokens in raster order, W windows, H heads, K head width.
"""

import jax.numpy as jnp
import numpy as np


def split(x, shape, window):
  """Tokens [B, N, H, K] of a grid of this shape → [B · W, w², H, K]; zeros beyond the grid."""
  rows, columns = _counts(shape, window)
  x = _pad(x, shape, window, 0)
  x = x.reshape(x.shape[0], rows, window, columns, window, *x.shape[3:])
  return x.swapaxes(2, 3).reshape(-1, window * window, *x.shape[5:])


def join(x, shape, window, batch):
  """The inverse of split: [B · W, w², H, K] → [B, N, H, K]."""
  rows, columns = _counts(shape, window)
  x = x.reshape(batch, rows, columns, window, window, *x.shape[2:]).swapaxes(2, 3)
  x = x.reshape(batch, rows * window, columns * window, *x.shape[5:])
  return x[:, : shape[0], : shape[1]].reshape(batch, -1, *x.shape[3:])


def neighbourhoods(x, shape, window):
  """Tokens [B, N, H, K] → what each window sees, [B · W, 4w², H, K]; zeros beyond the grid."""
  rows, columns = _counts(shape, window)
  half = window // 2
  x = _pad(x, shape, window, half)
  # Half-windows; every window sees four of them each way. Slices, since gathers are slow.
  x = x.reshape(x.shape[0], 2 * rows + 2, half, 2 * columns + 2, half, *x.shape[3:])
  x = jnp.concatenate([x[:, i : i + 2 * rows - 1 : 2] for i in range(4)], axis=2)
  x = jnp.concatenate([x[:, :, :, i : i + 2 * columns - 1 : 2] for i in range(4)], axis=4)
  return x.swapaxes(2, 3).reshape(-1, 4 * window * window, *x.shape[5:])


def mask(shape, window, batch):
  """Which of the tokens that a window sees lie on the grid; bool [B · W, 1, 1, 4w²]."""
  half = window // 2
  sides = []
  for size, count in zip(shape, _counts(shape, window), strict=True):
    at = np.arange(count)[:, None] * window + np.arange(2 * window) - half
    sides.append((0 <= at) & (at < size))
  rows, columns = sides
  seen = rows[:, None, :, None] & columns[None, :, None, :]
  seen = seen.reshape(-1, 1, 1, 4 * window * window)
  return np.tile(seen, (batch, 1, 1, 1))


def _counts(shape, window):
  return tuple(-(-size // window) for size in shape)


def _pad(x, shape, window, border):
  """Tokens [B, N, …] as a grid of whole windows with a border; [B, h', w', …]."""
  x = x.reshape(x.shape[0], *shape, *x.shape[2:])
  ends = (count * window - size for size, count in zip(shape, _counts(shape, window), strict=True))
  sides = [(border, end + border) for end in ends]
  return jnp.pad(x, [(0, 0), *sides, *[(0, 0)] * (x.ndim - 3)])
