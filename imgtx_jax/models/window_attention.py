"""Window attention on a grid: its cost grows linearly with the number of tokens.

The grid is cut into windows of w × w tokens. Tokens of a window attend to the 2w × 2w square around
it. Every token thus sees at least w/2 tokens in each direction, so that windows leave no seams, and
away from the grid's edge its output does not depend on the size of the grid.

Dimensions: B batch, N = h · w tokens in raster order, W windows, H heads, K head width.
"""

import jax.numpy as jnp
import numpy as np


def split(x, shape, window):
  """Cuts tokens [B, N, H, K] of a grid (h, w) into windows [B · W, w², H, K]; zeros outside."""
  rows, columns = _counts(shape, window)
  x = _pad(x, shape, window, 0)
  x = x.reshape(x.shape[0], rows, window, columns, window, *x.shape[3:])
  return x.swapaxes(2, 3).reshape(-1, window * window, *x.shape[5:])


def join(x, shape, window, batch):
  """Inverts split: joins windows [B · W, w², H, K] to tokens [B, N, H, K].

  Args:
    x: windows [B · W, w², H, K].
    shape: (h, w) of the grid.
    window: w, the side of a window.
    batch: B.
  """
  rows, columns = _counts(shape, window)
  x = x.reshape(batch, rows, columns, window, window, *x.shape[2:]).swapaxes(2, 3)
  x = x.reshape(batch, rows * window, columns * window, *x.shape[5:])
  return x[:, : shape[0], : shape[1]].reshape(batch, -1, *x.shape[3:])


def neighbourhoods(x, shape, window):
  """Returns the tokens [B · W, 4w², H, K] that each window attends to; zeros outside the grid.

  Args:
    x: tokens [B, N, H, K].
    shape: (h, w) of the grid.
    window: w, the side of a window.
  """
  rows, columns = _counts(shape, window)
  half = window // 2
  x = _pad(x, shape, window, half)
  # Half-windows: a window attends to four of them in each direction. Slices: gathers are slow.
  x = x.reshape(x.shape[0], 2 * rows + 2, half, 2 * columns + 2, half, *x.shape[3:])
  x = jnp.concatenate([x[:, i : i + 2 * rows - 1 : 2] for i in range(4)], axis=2)
  x = jnp.concatenate([x[:, :, :, i : i + 2 * columns - 1 : 2] for i in range(4)], axis=4)
  return x.swapaxes(2, 3).reshape(-1, 4 * window * window, *x.shape[5:])


def mask(shape, window, batch):
  """Returns which of a window's neighbourhood lies on the grid; bool [B · W, 1, 1, 4w²].

  Args:
    shape: (h, w) of the grid.
    window: w, the side of a window.
    batch: B.
  """
  half = window // 2
  sides = []
  for size, count in zip(shape, _counts(shape, window), strict=True):
    index = np.arange(count)[:, None] * window + np.arange(2 * window) - half
    sides.append((0 <= index) & (index < size))
  rows, columns = sides
  seen = rows[:, None, :, None] & columns[None, :, None, :]
  seen = seen.reshape(-1, 1, 1, 4 * window * window)
  return np.tile(seen, (batch, 1, 1, 1))


def _counts(shape, window):
  """Returns the number of windows in each direction."""
  return tuple(-(-size // window) for size in shape)


def _pad(x, shape, window, border):
  """Reshapes tokens [B, N, …] to a grid [B, h', w', …] of whole windows with a border of zeros."""
  x = x.reshape(x.shape[0], *shape, *x.shape[2:])
  ends = (count * window - size for size, count in zip(shape, _counts(shape, window), strict=True))
  sides = [(border, end + border) for end in ends]
  return jnp.pad(x, [(0, 0), *sides, *[(0, 0)] * (x.ndim - 3)])
