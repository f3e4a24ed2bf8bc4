"""Running a compiled function over any number of examples."""

import jax
import numpy as np


def in_batches(run, batch, batch_size, devices=None):
  """run over a batch of any length, NumPy arrays with a row an example, in batches of one size.

  batch_size is rounded up to what `devices` divide, by default all of this process; the last batch
  is filled up with rows that are dropped again, so that one program serves all. Returns NumPy
  arrays.
  """
  total = len(jax.tree.leaves(batch)[0])
  devices = devices or jax.local_device_count()
  size = -(-batch_size // devices) * devices
  parts = []
  for start in range(0, total, size):
    rows = np.arange(start, start + size) % total
    parts.append(jax.device_get(run(jax.tree.map(lambda x, r=rows: x[r], batch))))
  return jax.tree.map(lambda *x: np.concatenate(x)[:total], *parts)
