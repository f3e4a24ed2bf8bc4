"""benchmark checkpoint: the cost of checkpoints of a state of --gigabytes in a temporary folder.

  python -m imgtx_jax.benchmark checkpoint --gigabytes 1

The state is float32 arrays of 64 MB of random bits, which no compression shrinks, on the first
device. Values are medians of three runs. TMPDIR names the disk; files just written are still in
memory when they are read.

  blocked_seconds                 seconds a save blocks training: the rest is in the background
  first_blocked_seconds           the same for the first save
  written_seconds                 from the call of save() until the step is on disk
  restore_seconds                 reading it back onto the device, each checksum verified
  restore_megabytes_per_second    the same as a rate
  write_megabytes_per_second      the disk's rate: a plain file of that size, with fsync
  checksum_megabytes_per_second   the checksums alone
"""

import os
import shutil
import statistics
import tempfile
import time

import jax.numpy as jnp
import numpy as np

from imgtx_jax.benchmark import common
from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import explain_disk
from imgtx_jax.training import checkpoint, checksums
from imgtx_jax.training.train_state import TrainState

ARRAY_BYTES = 64 * 10**6
RUNS = 3
RESERVE_SECONDS = 4  # a gigabyte


def measure(gigabytes):
  """Measures saving and restoring; returns the object of the module's docstring."""
  _check_size(gigabytes)
  state = random_state(gigabytes)
  size = sum(x.nbytes for x in state.params.values())
  with tempfile.TemporaryDirectory() as folder, explain_disk(folder):
    checkpoints = checkpoint.Checkpoints(folder, keep=1)
    checkpoints.reserve(state)
    time.sleep(RESERVE_SECONDS * gigabytes)  # while a training compiles its first step
    blocked, written, restored, checked = [], [], [], []
    for run in range(RUNS):
      step = state.replace(step=np.int32(run))
      began = time.monotonic()
      checkpoints.save(run, step)
      blocked.append(time.monotonic() - began)
      checkpoints.wait()
      written.append(time.monotonic() - began)
      restored.append(common.seconds_of(lambda: checkpoints.restore(state)))
      checked.append(common.seconds_of(lambda: checksums.checksums(state.params)))
    checkpoints.close()
    disk = common.seconds_of(lambda: write_plain(folder, state))
  first = blocked[0]
  blocked, written, restored, checked = map(
    statistics.median, (blocked, written, restored, checked)
  )
  return {
    "gigabytes": size / 1e9,
    "arrays": len(state.params),
    "blocked_seconds": blocked,
    "first_blocked_seconds": first,
    "written_seconds": written,
    "restore_seconds": restored,
    "restore_megabytes_per_second": size / restored / 1e6,
    "checksum_megabytes_per_second": size / checked / 1e6,
    "write_megabytes_per_second": size / disk / 1e6,
  } | common.machine()


def _check_size(gigabytes):
  """Raises UserError for a state that is none, or that memory or disk have no room for twice."""
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  disk = shutil.disk_usage(tempfile.gettempdir()).free
  for place, free in (("the memory", memory), (f"the disk of {tempfile.gettempdir()}", disk)):
    if not 0 < 2e9 * gigabytes <= free:  # NaN too
      raise UserError(
        f"--gigabytes={gigabytes} must be more than 0, and twice that must fit into {place}, of "
        f"{free / 1e9:.3g} GB; choose less"
      )


def random_state(gigabytes):
  """Returns a TrainState of `gigabytes` of random arrays on the device."""
  draw = np.random.default_rng(0)
  count = max(1, round(gigabytes * 1e9 / ARRAY_BYTES))
  length = int(gigabytes * 1e9 / count) // 4096 * 1024 or 1024

  def array():
    # Of the exponents only those of finite numbers: bits alone would hold NaNs.
    return jnp.asarray(draw.random(length, np.float32).reshape(-1, 1024))

  params = {f"array_{i:03}": array() for i in range(count)}
  return TrainState(np.int32(0), params, opt_state={}, ema={}, variables={}, frozen={})


def write_plain(folder, state):
  """Writes the arrays of a state to one file; returns once they are on disk."""
  with open(os.path.join(folder, "plain"), "wb") as file:
    for x in state.params.values():
      file.write(np.asarray(x).data)
    file.flush()
    os.fsync(file.fileno())
