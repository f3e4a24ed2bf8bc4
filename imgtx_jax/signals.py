"""Asking a long loop to stop."""

import signal


class StopSignals:
  """Turns SIGTERM and Ctrl-C into a flag; a second one acts at once. A context manager."""

  def __init__(self):
    self.number = None

  def __enter__(self):
    self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    self.number = number
    signal.signal(number, self._before[number])
