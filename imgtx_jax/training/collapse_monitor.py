"""Watches a training run for collapse, and knows what it may fall back to.

What it knows is part of every checkpoint, so that a resumed run does as an unbroken one: alarms
(how many logged lines in a row showed signs of a collapse), good (the step of the last checkpoint
that was saved without an alarm) and collapses (a line on each that the run fell back from).
"""

import numpy as np

from imgtx_jax.training import train_state as states

RETRIES = 1
RATE = 0.5  # of all learning rates, after a collapse


class Collapse(Exception):
  """Training has come to nothing; says why."""


class Guard:
  """mode: config.guard; lines: config.guard_lines; judge: Stage.guard."""

  def __init__(self, mode, lines, judge):
    self.mode, self.lines, self.judge = mode, lines, judge
    self.alarms, self.good, self.collapses = 0, None, []

  def restore(self, meta):
    """Takes over what a checkpoint's meta says; without one (None), a run that has just begun."""
    meta = meta or {"alarms": 0, "good": None, "collapses": []}
    self.alarms, self.good = meta["alarms"], meta["good"]
    self.collapses = list(meta["collapses"])

  def meta(self, step):
    """For the meta of the checkpoint of `step`."""
    if not self.alarms:
      self.good = step
    return {"alarms": self.alarms, "good": self.good, "collapses": self.collapses}

  def look(self, step, means):
    """After a logged line, {name: mean}; raises Collapse."""
    reason = self.judge(step, means) if self.mode != "off" else None
    self.alarms = self.alarms + 1 if reason else 0
    if self.alarms >= self.lines:
      raise Collapse(f"collapsed, {reason} (in {self.alarms} logged lines in a row)")

  def check_window(self, window):
    """Raises Collapse if any of the metrics {name: values} is not finite."""
    bad = sorted(n for n, values in window.items() if not np.all(np.isfinite(values)))
    if bad:
      steps = len(window[bad[0]])
      raise Collapse(f"diverged, {', '.join(bad)} not finite within the last {steps} steps")

  def check_state(self, state):
    """Raises Collapse if a number of the state is not finite."""
    if not states.is_finite(state):
      raise Collapse("diverged, weights or their averages are not finite")

  @property
  def may_retry(self):
    """Whether the run may fall back once more."""
    return self.mode == "retry" and len(self.collapses) < RETRIES

  def back_to(self):
    """Where the last good weights are."""
    return (
      "the stage's start" if self.good is None else f"the last good checkpoint, step {self.good}"
    )

  def advice(self):
    """What the user can do about a collapse that stops the run."""
    kept = f"{self.back_to()}, is kept: " if self.good is not None else "nothing was saved yet: "
    if self.mode == "retry":
      return f"it had fallen back once already; {kept}lower the learning rates in a new --workdir"
    return f"{kept}go on at half the learning rates with --config.guard=retry, or lower them"
