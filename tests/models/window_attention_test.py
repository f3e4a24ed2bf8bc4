"""Attention in windows of a grid: who sees whom, and that the parts fit together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models import window_attention
from imgtx_jax.models.attention import Attention
from imgtx_jax.models.transformer import Context

WINDOW = 4


def numbered(shape, batch=2):
  """Tokens [B, N, 1, 1] that hold their raster number, from 1."""
  count = shape[0] * shape[1]
  return jnp.asarray(np.tile(np.arange(1.0, count + 1)[None, :, None, None], (batch, 1, 1, 1)))


@pytest.mark.parametrize("shape", [(8, 8), (5, 11), (3, 9)])
def test_join_undoes_split(shape):
  x = numbered(shape)
  parts = window_attention.split(x, shape, WINDOW)
  np.testing.assert_array_equal(window_attention.join(parts, shape, WINDOW, 2), x)


@pytest.mark.parametrize("shape", [(8, 8), (5, 11), (3, 9)])
def test_a_window_sees_the_square_around_it(shape):
  seen = window_attention.neighbourhoods(numbered(shape), shape, WINDOW)[..., 0, 0]
  mask = window_attention.mask(shape, WINDOW, 2)[:, 0, 0]
  np.testing.assert_array_equal(mask, seen > 0)
  columns = -(-shape[1] // WINDOW)
  grid = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)
  for number in range(len(seen) // 2):
    top, left = (WINDOW * at - WINDOW // 2 for at in divmod(number, columns))
    part = grid[max(top, 0) : top + 2 * WINDOW, max(left, 0) : left + 2 * WINDOW]
    assert set(np.asarray(seen[number][mask[number]]).astype(int)) == set(part.ravel())


def test_attention_is_that_of_all_tokens_where_a_window_sees_them_all_and_local_elsewhere():
  x = np.random.default_rng(0).standard_normal((2, 48, 16)).astype(np.float32)
  plain, narrow = Attention(2), Attention(2, window=WINDOW)
  params = plain.init(jax.random.key(0), x, Context())
  inside = x[:, :16]
  np.testing.assert_allclose(
    narrow.apply(params, inside, Context(shape=(4, 4)))[0],
    plain.apply(params, inside, Context())[0],
    atol=1e-5,
  )
  shape = (4, 12)
  changed = x.copy()
  changed.reshape(2, 4, 12, 16)[:, :, 0] += 1.0  # the first column
  out, other = (narrow.apply(params, v, Context(shape=shape))[0] for v in (x, changed))
  moved = np.abs(out - other).reshape(2, 4, 12, 16).max(axis=(0, 1, 3))
  # Windows of columns 0 … 3 see −2 … 5, those of 4 … 7 see 2 … 9.
  assert np.all(moved[:4] > 1e-4) and np.all(moved[4:] == 0)
  with pytest.raises(ValueError, match="no causal order"):
    Attention(2, window=WINDOW, causal=True).apply(params, x, Context(shape=shape))
