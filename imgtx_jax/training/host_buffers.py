"""NumPy copies of a state's arrays, in memory that is kept from one save to the next.

Training waits while a save copies the state. The first write to new memory takes longer than the
copy itself, so the memory is written to once, in the background, before the first save.
"""

import threading

import numpy as np

from imgtx_jax.training import checksums


class HostCopies:
  """Copies of arrays by name; `reserve` makes room for them ahead of time."""

  def __init__(self):
    self._copies, self._thread = {}, None

  def reserve(self, arrays):
    """Starts to make room for copies of {name: array or ShapeDtypeStruct}, in the background."""
    self._wait()
    like = {name: x for name, x in arrays.items() if _is_local(x) and not self._fits(name, x)}

    def touch():
      for name, x in like.items():
        copy = np.empty(x.shape, x.dtype)
        copy.fill(0)
        self._copies[name] = copy

    self._thread = threading.Thread(target=touch, daemon=True)
    self._thread.start()

  def take(self, name, x):
    """Returns a copy of x, valid until the next call with that name.

    A view would not do: it keeps a buffer on the CPU from being donated. Arrays over several
    processes are returned as they are, because Orbax copies their shards.
    """
    if checksums.is_global(x):
      return x
    self._wait()
    if not self._fits(name, x):
      self._copies[name] = np.empty(x.shape, x.dtype)
    np.copyto(self._copies[name], x)
    return self._copies[name]

  def clear(self):
    """Drops all copies; those that are still being read stay until then."""
    self._wait()
    self._copies = {}

  def _fits(self, name, x):
    copy = self._copies.get(name)
    return copy is not None and (copy.shape, copy.dtype) == (x.shape, x.dtype)

  def _wait(self):
    if self._thread is not None:
      self._thread.join()
      self._thread = None


def _is_local(x):
  sharding = getattr(x, "sharding", None)
  return sharding is None or sharding.is_fully_addressable
