"""imgtx_jax.main with a fault made on purpose: FAULT=KIND:PROCESS:BATCH python tests/faulty_main.py

takes main's flags. Before the process's batch of that number (from 0, since its start) it
  kill       is killed (SIGKILL)
  term       gets a SIGTERM
  save       gets a SIGTERM in the middle of its next save
  evaluate   gets a SIGTERM in the middle of its next evaluation
and in "nan" the step of that number leaves weights that are not finite, unless its rates were
lowered. SLOW=SECONDS waits before every batch from there on; CLOCK=SECONDS and HOST=NAME are what
the process takes for the time and its host's name.
"""

import os
import signal
import socket
import time

import jax
import jax.numpy as jnp

from imgtx_jax import main
from imgtx_jax.cli import command
from imgtx_jax.data import pipeline
from imgtx_jax.stages.tokenizer import TokenizerStage
from imgtx_jax.training import checkpoint, loop

KIND, PROCESS, BATCH = (os.environ.get("FAULT") or "none:0:0").split(":")


class Watched:
  """A training iterator with the fault in it."""

  make = pipeline.train_iterator

  def __init__(self, *args, **kwargs):
    self.inner, self.count = Watched.make(*args, **kwargs), 0

  def __getattr__(self, name):
    return getattr(self.inner, name)

  def __next__(self):
    if self.count >= int(BATCH):
      time.sleep(float(os.environ.get("SLOW", 0)))
    if self.count == int(BATCH) and jax.process_index() == int(PROCESS):
      act()
    self.count += 1
    return next(self.inner)


def act():
  """The fault, or its setting up."""
  if KIND == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
  elif KIND == "term":
    terminate()
  elif KIND == "save":
    wrap(checkpoint.Checkpoints, "_prepare")
  elif KIND == "evaluate":
    wrap(loop.pipeline, "eval_batches")


def wrap(owner, name):
  """Has the next call of owner.name begin with a SIGTERM."""
  plain = getattr(owner, name)

  def call(*args, **kwargs):
    setattr(owner, name, plain)
    terminate()
    return plain(*args, **kwargs)

  setattr(owner, name, call)


def step_with_nan(self, state, batch, key, *, axis, plain=TokenizerStage.step):
  after, metrics = plain(self, state, batch, key, axis=axis)
  ill = (state.step == int(BATCH)) & (state.rate > 0.75)
  params = jax.tree.map(lambda x: jnp.where(ill, jnp.nan, x), after.params)
  return after.replace(params=params), metrics


def shift_clock(seconds, plain=time.time):
  time.time = lambda: plain() + seconds


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
  loop.pipeline.train_iterator = Watched
  if KIND == "nan":
    TokenizerStage.step = step_with_nan
  if "CLOCK" in os.environ:
    shift_clock(float(os.environ["CLOCK"]))
  if "HOST" in os.environ:
    socket.gethostname = lambda: os.environ["HOST"]
  command.run(main.COMMAND)
