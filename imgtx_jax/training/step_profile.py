"""Profiles some steps of a stage for TensorBoard (XProf), each marked on the time line."""

import contextlib
import re

import jax

from imgtx_jax.errors import UserError


def parse(text):
  """Returns the range of steps that FIRST:LAST names, LAST left out; None for ""."""
  if not text:
    return None
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or int(match[1]) >= int(match[2]):
    raise UserError(f"--profile_steps={text} is no FIRST:LAST; write for example 100:110")
  return range(int(match[1]), int(match[2]))


class StepProfile:
  """Writes a trace of the steps in a range to directory/plugins/profile.

  steps: a range, or None: no trace. Where training goes on from within the range, its rest counts.
  """

  def __init__(self, steps, directory):
    self.steps, self.directory = steps or range(0), directory
    self.running = False

  @contextlib.contextmanager
  def step(self, number, wait):
    """Marks the step that runs within; wait(): returns once the steps before are computed."""
    if number in self.steps and not self.running:
      wait()
      jax.profiler.start_trace(self.directory)
      self.running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield
    if self.running and number + 1 not in self.steps:
      wait()
      self.stop()

  def stop(self):
    """Writes what has been traced so far; training may end within the range."""
    if self.running:
      self.running = False
      jax.profiler.stop_trace()
