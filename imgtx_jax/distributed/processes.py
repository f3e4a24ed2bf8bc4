"""The processes of one run: how they find each other, agree on when to stop, and end together.

jax.distributed connects them, by explicit addresses or by what its own detection finds on Cloud
TPUs, GKE, SLURM and Open MPI. The first process writes what a run leaves and speaks for all.

A process that fails ends at once, without waiting for the others; those notice by a broken
connection, or after HEARTBEAT_SECONDS without a sign of life, and end too.
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
# What XLA, Gloo, NCCL and jax.distributed say when another process is gone.
_LOSS = re.compile(
  r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|coordination service|"
  r"barrier|unavailable|deadline.exceeded|peer|aborted|task .* (died|failed)",
  re.IGNORECASE,
)
_agreeing = False  # whether SIGTERM is a notice that all processes act on together
_asked = 0  # how often should_stop was asked


def start(address=None, count=None, index=None, *, agree=False):
  """Connects this process with the others of its run, or leaves it alone where there are none.

  address ("HOST:PORT" of the first process), count and index name them; all three or none. agree:
  SIGTERM on one process stops all of them at one step, which should_stop tells; for runs that ask
  it in every step. To be called before anything computes. UserError if they cannot be connected.
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
  """Whether a scheduler has started this process as one of several: what jax.distributed finds out
  the rest of by itself. Looks at the environment only, which takes no time.

  A single task of SLURM stays alone: jax would leave it only the first GPU of its node.
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
  """Whether this is the process that writes for all; true of one alone."""
  return not _are_several() or jax.process_index() == 0


def wait_for_all(what):
  """Until every process has come here; `what` has been done by then."""
  if _are_several():
    multihost_utils.sync_global_devices(what)


def gather(data):
  """Every process's bytes, in process order; also a barrier."""
  if jax.process_count() == 1:
    return [data]
  sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
  return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def agreeing():
  """Whether SIGTERM is left to should_stop."""
  return _agreeing


def should_stop():
  """Whether a SIGTERM, to any of the processes, stops all of them now. All processes ask equally
  often, and one call says so to all of them; it costs microseconds."""
  global _asked
  _asked += 1
  return _agreeing and multihost_utils.reached_preemption_sync_point(_asked)


def peak_memory_bytes():
  """The most memory used so far by this process's first accelerator, or by the process on a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return int(stats["peak_bytes_in_use"])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_loss(error):
  """Whether an exception says that another process is gone."""
  kind = isinstance(error, RuntimeError | ValueError | OSError)
  return kind and _are_several() and bool(_LOSS.search(str(error)))


def name():
  """What a message begins with: "process 3: " where there are several, else nothing."""
  return f"process {jax.process_index()}: " if _are_several() else ""


def leave(code, *, together=False):
  """Ends this process; together: all end now, and wait for each other. Otherwise it does not wait:
  the others may be waiting for it in a step that will never come."""
  if _are_several() and not together:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)  # where there are several, jax waits for all on the way out


def _are_several():
  # Asked in this order, for the second question starts jax's backend.
  return jax.distributed.is_initialized() and jax.process_count() > 1
