"""Checksums of arrays that do not depend on how an array is split over devices and processes.

A checksum is the sum of every element's bits times an odd weight (2 × flat index + 1), modulo
2**64. Any single changed element changes it, and the sums of shards add up: a checkpoint can be
verified under another sharding than it was written with, and no process needs a whole array.
"""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from imgtx_jax.distributed import processes

_THREADS = min(8, os.cpu_count() or 1)  # a save waits for the sums; NumPy lets go of Python's lock
_CHUNK = 2**20  # elements whose weights are in memory at once
_RUN = 2**16  # the same where they lie one after another: two such buffers stay in the cache


def checksums(arrays):
  """Returns {name: checksum} of {name: array}; the same in every process."""
  with ThreadPoolExecutor(_THREADS) as pool:
    sums = dict(zip(arrays, pool.map(_local, arrays.values()), strict=True))
  shared = {name: sums[name] for name, x in arrays.items() if is_global(x)}
  if shared:
    parts = [json.loads(text) for text in processes.gather(json.dumps(shared).encode())]
    sums |= {name: sum(part[name] for part in parts) % 2**64 for name in shared}
  return sums


def is_global(x):
  """Returns whether other processes hold a part of this array."""
  return isinstance(x, jax.Array) and not x.is_fully_addressable


def _local(x):
  """Sums over this process's part of `x`; of replicated parts one process has each."""
  if not isinstance(x, jax.Array):
    return _part(np.asarray(x), (slice(None),) * np.ndim(x), np.shape(x))
  shards = [s for s in x.addressable_shards if s.replica_id == 0]
  return sum(_part(np.asarray(s.data), s.index, x.shape) for s in shards) % 2**64


def _part(x, index, shape):
  """Sums over `x`, the part at `index` of an array of `shape`."""
  bits = np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")
  if bits.shape[1:] == tuple(shape[1:]):
    start = (index[0].start or 0) * math.prod(shape[1:]) if index else 0
    return _run(bits.reshape(-1), start)
  if bits.size > _CHUNK and len(bits) > 1:  # halve the first axis until it fits
    start, half = index[0].start or 0, len(bits) // 2
    first = (slice(start, start + half), *index[1:])
    second = (slice(start + half, start + len(bits)), *index[1:])
    return (_part(bits[:half], first, shape) + _part(bits[half:], second, shape)) % 2**64
  position = np.zeros((), np.uint64)
  for length, size, at in zip(shape, bits.shape, index, strict=True):
    along = np.arange(size, dtype=np.uint64) + np.uint64(at.start or 0)
    position = position[..., None] * np.uint64(length) + along
  weights = position * np.uint64(2) + np.uint64(1)
  return int((bits.astype(np.uint64) * weights).sum(dtype=np.uint64))


def _run(bits, start):
  """Sums over `bits` [n], at the flat indices from `start` on.

  Two small buffers are used again and again, because the first write to new memory is slow.
  """
  weights = np.arange(1, 2 * min(_RUN, len(bits)), 2, dtype=np.uint64)
  wide, product, total = np.empty_like(weights), np.empty_like(weights), 0
  for offset in range(0, len(bits), _RUN):
    part = bits[offset : offset + _RUN]
    x, y = wide[: len(part)], product[: len(part)]
    np.copyto(x, part)
    np.multiply(x, weights[: len(part)], out=y)
    total += int(y.sum()) + 2 * (start + offset) * int(x.sum())
  return total % 2**64
