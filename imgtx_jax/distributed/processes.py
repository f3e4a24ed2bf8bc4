"""The processes of one run: connecting them, stopping them at one step, ending them together.

jax.distributed connects them, by given addresses or by what it detects on Cloud TPUs, GKE, SLURM
and Open MPI. The first process writes all files and prints for all.

A process that fails ends at once, without waiting for the others. Those notice a broken connection,
or HEARTBEAT_SECONDS without a heartbeat, and end too.
"""

import glob
import importlib.util
import os
import re
import resource
import sys

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from imgtx_jax.errors import UserError, first_line

HEARTBEAT_SECONDS = 30
LOST = 75  # the exit code of a process whose run lost another one: sysexits.h's "try again"
_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
# Words of XLA, Gloo, NCCL and jax.distributed when another process is gone.
_LOSS = re.compile(
  r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|coordination service|"
  r"barrier|unavailable|deadline.exceeded|peer|aborted|task .* (died|failed)",
  re.IGNORECASE,
)
_agreeing = False  # whether should_stop handles SIGTERM, for all processes together
_asked = 0  # number of calls of should_stop


def start(address=None, count=None, index=None, *, agree=False):
  """Connects this process with the others of its run, if there are any.

  Call it before any computation.

  Args:
    address: "HOST:PORT" of the first process.
    count, index: the number of processes, and this one's. Give all three, or none for detection.
    agree: whether SIGTERM to one process stops all of them at one step, through should_stop, which
      the run then calls in every step.

  Raises:
    UserError: if they cannot be connected.
  """
  global _agreeing
  given = {"coordinator_address": address, "num_processes": count, "process_id": index}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if not in_cluster():
      return
  elif missing:
    raise UserError(f"--{missing[0]} is missing: give all of {', '.join(f'--{n}' for n in given)}")
  elif not 0 <= index < count:
    raise UserError(f"--process_id={index} is outside 0 … {count - 1}, as --num_processes={count}")
  elif count == 1:
    return
  jax.config.update("jax_enable_preemption_service", agree)
  try:
    jax.distributed.initialize(
      **given,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(
      f"the processes of this run cannot be connected ({first_line(error)}): start all of them "
      "with one --coordinator_address, which the others can reach, and their own --process_id"
    ) from error
  _agreeing = agree and _are_several()
  if not is_first():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the rest of this process
    logging.set_verbosity(logging.ERROR)


def in_cluster(environment=os.environ):
  """Returns whether a scheduler has started this process as one of several that jax.distributed
  can connect. Only reads environment variables and looks for devices.

  A single task of SLURM counts as one process: jax would give it only the first GPU of its node.
  """
  if all(f"SLURM_{name}" in environment for name in _SLURM):
    return int(environment["SLURM_NTASKS"]) > 1
  if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    return True
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    if importlib.util.find_spec("kubernetes"):  # jax[k8s], with which jax asks for the job
      return True
  if "cpu" == environment.get("JAX_PLATFORMS") or not importlib.util.find_spec("libtpu"):
    return False
  hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
  if hosts:
    return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
  if "TPU_SKIP_MDS_QUERY" in environment:  # jax sets it where there is no chip
    return False
  return bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))


def is_first():
  """Returns whether this process writes for all; True where there is only one."""
  return not _are_several() or jax.process_index() == 0


def wait_for_all(what):
  """Waits until every process has called it; what: a name for it, for errors."""
  if _are_several():
    multihost_utils.sync_global_devices(what)


def gather(data):
  """Returns a list of every process's bytes, in order of processes; also a barrier."""
  if jax.process_count() == 1:
    return [data]
  sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
  return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def agreeing():
  """Returns whether should_stop handles SIGTERM."""
  return _agreeing


def should_stop():
  """Returns whether a SIGTERM to any process stops all of them now; takes microseconds.

  All processes call it equally often, and all get True in the same call.
  """
  global _asked
  _asked += 1
  return _agreeing and multihost_utils.reached_preemption_sync_point(_asked)


def peak_memory_bytes():
  """Returns the peak memory of this process's first accelerator, or of the process on a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return int(stats["peak_bytes_in_use"])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_loss(error):
  """Returns whether an exception means that another process is gone."""
  kind = isinstance(error, RuntimeError | ValueError | OSError)
  return kind and _are_several() and bool(_LOSS.search(str(error)))


def name():
  """Returns a prefix for messages: "process 3: " where there are several, else ""."""
  return f"process {jax.process_index()}: " if _are_several() else ""


def leave(code, *, together=False):
  """Ends this process with an exit code.

  together: all processes end now, and wait for each other. Otherwise this one does not wait, since
  the others may wait for it in a step that it will never run.
  """
  if _are_several() and not together:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)  # where there are several, jax waits for all on the way out


def _are_several():
  # Asked in this order, for the second question starts jax's backend.
  return jax.distributed.is_initialized() and jax.process_count() > 1
