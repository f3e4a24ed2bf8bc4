"""benchmark checkpoint: what a checkpoint costs, for a state of --gigabytes in a temporary folder.

The state is float32 arrays of 64 MB of random bits, which no compression shrinks, on the first
device. Figures are medians of three. TMPDIR names the disk; files just written are still in memory
when they are read.

blocked_seconds                 that save() takes from training: the rest is in the background
first_blocked_seconds           the same of the first save
written_seconds                 until the step is on disk, from the call of save()
restore_seconds                 reading it back onto the device, each checksum verified
restore_megabytes_per_second    the same as a rate
verify_megabytes_per_second     of finding the newest intact step, as a resumed run does first
write_megabytes_per_second      the disk's: a plain file of that size, with fsync, right after
checksum_megabytes_per_second   of the checksums alone
"""

import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import explain_disk
from imgtx_jax.training import checkpoint, checksums
from imgtx_jax.training.train_state import TrainState

ARRAY_BYTES = 64 * 10**6
RUNS = 3
RESERVE_SECONDS = 4  # a gigabyte


def measure(gigabytes):
  """The figures above."""
  if not 0 < gigabytes:
    raise UserError(f"--gigabytes={gigabytes} must be more than 0")
  state = random_state(gigabytes)
  size = sum(x.nbytes for x in state.params.values())
  with tempfile.TemporaryDirectory() as folder, explain_disk(folder):
    checkpoints = checkpoint.Checkpoints(folder, keep=1)
    checkpoints.reserve(state)
    time.sleep(RESERVE_SECONDS * gigabytes)  # while a training compiles its first step
    blocked, written, restored, verified, checked = [], [], [], [], []
    for run in range(RUNS):
      step = state.replace(step=np.int32(run))
      began = time.monotonic()
      checkpoints.save(run, step)
      blocked.append(time.monotonic() - began)
      checkpoints.wait()
      written.append(time.monotonic() - began)
      verified.append(seconds(checkpoints.latest))
      restored.append(seconds(lambda: jax.block_until_ready(checkpoints.restore(state))))
      checked.append(seconds(lambda: checksums.checksums(state.params)))
    checkpoints.close()
    disk = seconds(lambda: write_plain(folder, state))
  first = blocked[0]
  blocked, written, restored, verified, checked = map(
    statistics.median, (blocked, written, restored, verified, checked)
  )
  return {
    "gigabytes": size / 1e9,
    "arrays": len(state.params),
    "blocked_seconds": blocked,
    "first_blocked_seconds": first,
    "written_seconds": written,
    "restore_seconds": restored,
    "restore_megabytes_per_second": size / restored / 1e6,
    "verify_megabytes_per_second": size / verified / 1e6,
    "checksum_megabytes_per_second": size / checked / 1e6,
    "write_megabytes_per_second": size / disk / 1e6,
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def random_state(gigabytes):
  """A TrainState of that size on the device."""
  draw = np.random.default_rng(0)
  count = max(1, round(gigabytes * 1e9 / ARRAY_BYTES))
  length = int(gigabytes * 1e9 / count) // 4096 * 1024 or 1024

  def array():
    # Of the exponents only those of finite numbers: bits alone would hold NaNs.
    return jnp.asarray(draw.random(length, np.float32).reshape(-1, 1024))

  params = {f"array_{i:03}": array() for i in range(count)}
  return TrainState(np.int32(0), params, opt_state={}, ema={}, variables={}, frozen={})


def seconds(function):
  """That a call takes."""
  began = time.monotonic()
  function()
  return time.monotonic() - began


def write_plain(folder, state):
  """The arrays to one file, until they are on disk."""
  with open(os.path.join(folder, "plain"), "wb") as file:
    for x in state.params.values():
      file.write(np.asarray(x).data)
    file.flush()
    os.fsync(file.fileno())
