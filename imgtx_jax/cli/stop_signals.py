"""Turns stop signals into a flag that a long loop reads."""

import os
import signal

from imgtx_jax.distributed import processes


class StopSignals:
  """Stores the number of the first SIGTERM, SIGHUP (a closed terminal) or Ctrl-C in `number`.

  A context manager. A second signal acts at once. A SIGHUP that the process was started to ignore
  (nohup) stays ignored.

  Where several processes agree on when to stop (processes.start), the other signals are passed on
  as SIGTERM, and only `agreed` changes `number`: in all processes after the same step.
  """

  def __init__(self):
    self.number = None

  def __enter__(self):
    numbers = [signal.SIGINT] if processes.agreeing() else [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
      numbers.append(signal.SIGHUP)
    self._before = {n: signal.signal(n, self._note) for n in numbers}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def agreed(self):
    """Returns the signal to stop at now, or None; every process calls it once in every step."""
    if processes.should_stop():
      self.number = signal.SIGTERM
    return self.number

  def _note(self, number, _):
    # A closed terminal sends it twice: the kernel, and the shell.
    again = signal.SIG_IGN if number == signal.SIGHUP else self._before[number]
    signal.signal(number, again)
    if processes.agreeing():
      os.kill(os.getpid(), signal.SIGTERM)  # jax's own handler tells the others
    else:
      self.number = number
