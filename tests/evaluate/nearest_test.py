"""The search for nearest images."""

import numpy as np

from imgtx_jax.evaluate import nearest


def test_the_nearest_of_all_chunks(monkeypatch):
  draw = np.random.default_rng(0)
  rows = draw.normal(size=(40, 5)).astype(np.float32)
  queries = np.concatenate([draw.normal(size=(6, 5)), rows[33:34]]).astype(np.float32)
  squared = ((queries[:, None].astype(np.float64) - rows) ** 2).sum(-1)
  for block in (2**25, 20):
    monkeypatch.setattr(nearest, "_BLOCK", block)
    distance, found = nearest.search(queries, np.split(rows, [7, 8, 30]))
    np.testing.assert_array_equal(found, squared.argmin(axis=1))
    np.testing.assert_allclose(distance, np.sqrt(squared.min(axis=1)), rtol=1e-12)
  assert distance[-1] == 0 and found[-1] == 33
