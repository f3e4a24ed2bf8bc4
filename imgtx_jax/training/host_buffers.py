"""NumPy copies of a state's arrays, in memory that stays from one save to the next.

A save copies the state before training goes on, and touching new memory takes longer than copying:
so it is touched once, before the first save, in the background.
"""

import threading

import numpy as np

from imgtx_jax.training import checksums


class HostCopies:
  """Copies by name; `reserve` makes room for them ahead of time."""

  def __init__(self):
    self._copies, self._thread = {}, None

  def reserve(self, arrays):
    """Begins to touch the memory for copies of {name: array or ShapeDtypeStruct}."""
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
    """A copy of x, until the next of that name: Orbax refuses numpy scalars, and a view of a CPU
    buffer blocks its donation. Arrays over several processes stay as they are; Orbax copies their
    shards."""
    if checksums.is_global(x):
      return x
    self._wait()
    if not self._fits(name, x):
      self._copies[name] = np.empty(x.shape, x.dtype)
    np.copyto(self._copies[name], x)
    return self._copies[name]

  def clear(self):
    """Forgets all copies; whoever still reads one keeps it."""
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
