"""Detects that training has collapsed, and decides where it may fall back to.

A Guard's state is part of every checkpoint, so that a resumed run does what an unbroken one does:
alarms, the number of logged lines in a row with signs of a collapse; good, the step of the last
checkpoint without an alarm; collapses, a line for each one that the run fell back from.
"""

import numpy as np

from imgtx_jax.training import train_state as states

LINES = 3  # of the log in a row with signs of a collapse
RETRIES = 1
RATE = 0.5  # of all learning rates, after a collapse


class Collapse(Exception):
  """Training has collapsed; the message says why."""


class Guard:
  """Watches one run.

  mode: config.guard. judge: Stage.guard, a function (step, means) that returns why they look
  like a collapse, or None.
  """

  def __init__(self, mode, judge):
    self.mode, self.judge = mode, judge
    self.alarms, self.good, self.collapses = 0, None, []

  def restore(self, meta):
    """Sets the state to that of a checkpoint's meta; None: of a run that has just begun."""
    meta = meta or {"alarms": 0, "good": None, "collapses": []}
    self.alarms, self.good = meta["alarms"], meta["good"]
    self.collapses = list(meta["collapses"])

  def meta(self, step):
    """Returns a dict for the meta of the checkpoint of `step`."""
    if not self.alarms:
      self.good = step
    return {"alarms": self.alarms, "good": self.good, "collapses": self.collapses}

  def look(self, step, means):
    """Judges the means {name: value} of a logged line; raises Collapse."""
    reason = self.judge(step, means) if self.mode != "off" else None
    self.alarms = self.alarms + 1 if reason else 0
    if self.alarms >= LINES:
      raise Collapse(f"collapsed, {reason} (in {self.alarms} logged lines in a row)")

  def check_window(self, window):
    """Raises Collapse if a value of the metrics {name: values} is not finite."""
    bad = sorted(n for n, values in window.items() if not np.all(np.isfinite(values)))
    if bad:
      steps = len(window[bad[0]])
      raise Collapse(f"diverged, {', '.join(bad)} not finite within the last {steps} steps")

  def check_state(self, state):
    """Raises Collapse if a number of a placed state is not finite."""
    if not states.is_finite(state):
      raise Collapse("diverged, weights or their averages are not finite")

  @property
  def may_retry(self):
    """Returns whether the run may fall back."""
    return self.mode == "retry" and len(self.collapses) < RETRIES

  def back_to(self):
    """Returns in words where the last good weights are."""
    return (
      "the stage's start" if self.good is None else f"the last good checkpoint, step {self.good}"
    )

  def advice(self):
    """Returns advice for the user on a collapse that stops the run."""
    kept = f"{self.back_to()}, is kept: " if self.good is not None else "nothing was saved yet: "
    if self.mode == "retry":
      return f"it had fallen back once already; {kept}lower the learning rates in a new --workdir"
    return f"{kept}go on at half the learning rates with --config.guard=retry, or lower them"
