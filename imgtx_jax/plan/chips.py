"""TPU chips and their published rates, and --topology as devices that need not be here.

gpus.py has the GPUs. Per chip, from Google's pages on the versions of Cloud TPU
(docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e; read in November 2026):

| | HBM | bfloat16 | HBM bandwidth | links between chips, both ways | torus |
|---|---|---|---|---|---|
| v4 | 32 GB | 275 TFLOP/s | 1,200 GB/s | 2,400 Gbit/s | 3 axes |
| v5e | 16 GB | 197 TFLOP/s | 819 GB/s | 1,600 Gbit/s | 2 axes |
| v5p | 95 GB | 459 TFLOP/s | 2,765 GB/s | 4,800 Gbit/s | 3 axes |
| v6e | 32 GB | 918 TFLOP/s | 1,600 GB/s | 3,200 Gbit/s | 2 axes |
"""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from imgtx_jax.cli import absent_devices
from imgtx_jax.errors import UserError, first_line, one_of
from imgtx_jax.plan import gpus


class Chip(NamedTuple):
  """Rates of one chip.

  usable_bytes: how much of its HBM a program may take: the limit that libtpu's compiler names.
  flops: FLOP/s in bfloat16. hbm_bytes: of memory traffic a second. link_bytes: sent by a chip on
  all its links a second. axes: of its torus.
  """

  name: str
  usable_bytes: float
  flops: float
  hbm_bytes: float
  link_bytes: float
  axes: int

  def link_rate(self, kind, coords, sides):
    """Returns the bytes a second that a chip sends in a collective.

    coords: of the group's chips, in a slice with these sides. A permute has one link one way.
    Otherwise every axis that the chips lie along gives its part of the links: all of it if they go
    round a closed ring, half if they end; less if other groups lie between them and use the same
    links.
    """
    part = self.link_bytes / self.axes
    if kind == "collective-permute":
      return part / 2
    rate = 0.0
    for axis, side in enumerate(sides):
      places = {at[axis] for at in coords}
      closed = side >= 16 if self.axes == 2 else side % 4 == 0
      if len(places) > 1:
        dense = len(places) / (max(places) - min(places) + 1)
        rate += part * (1.0 if closed and len(places) == side else dense / 2)
    return rate or part / 2


_GIB = 2**30
CHIPS = {
  "v4": Chip("v4", 30.75 * _GIB, 275e12, 1.2e12, 300e9, 3),
  "v5e": Chip("v5e", 15.75 * _GIB, 197e12, 0.819e12, 200e9, 2),
  "v5p": Chip("v5p", 95.74 * _GIB, 459e12, 2.765e12, 600e9, 3),
  "v6e": Chip("v6e", 31.25 * _GIB, 918e12, 1.6e12, 400e9, 2),
}
_SHAPE = re.compile(r"\d+(x\d+){1,2}")
_EXAMPLES = (
  "v5e:16x16, v5p:2x4x4, v6e:8x8, v4:4x4x4, h100:8, h100:2x8, a100:8; cpu:4 or gpu for devices of "
  "this machine"
)
LOW_EFFORT = -1.0  # JAX's least


def prepare(topology, effort="full"):
  """Chooses JAX's platform for this --topology, and the compiler's effort, "low" or "full"; call it
  before JAX starts.

  A plan for other machines leaves the accelerators of this one alone.
  """
  if effort == "low":
    jax.config.update("jax_exec_time_optimization_effort", LOW_EFFORT)
  kind, _, count = topology.partition(":")
  if kind == "gpu":
    return
  absent_devices.show_tpu_compiler()
  # No asking Google's cloud where this is.
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")  # any, or it warns; changes nothing
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  if kind == "cpu":
    jax.config.update("jax_num_cpu_devices", _count(topology, count or "1"))


def open_topology(topology):
  """Returns (devices, Chip or Gpu) of --topology; None in its place for devices of this machine."""
  kind, _, shape = topology.partition(":")
  if kind in ("cpu", "gpu"):
    return _local(topology, kind, shape), None
  one_of(f"--topology={topology}: the kind", kind, (*CHIPS, *gpus.GPUS, "cpu", "gpu"))
  if kind in gpus.GPUS:
    return gpus.open_hosts(topology), gpus.GPUS[kind]
  return _slice(topology, kind, shape), CHIPS[kind]


def _slice(topology, kind, shape):
  """Returns the devices of a slice of TPUs."""
  if not _SHAPE.fullmatch(shape) or len(shape.split("x")) != CHIPS[kind].axes:
    sides = "x".join("4" * CHIPS[kind].axes)
    raise UserError(
      f"--topology={topology} does not say how many chips of a {kind} lie along each of the "
      f"{CHIPS[kind].axes} axes; write for example {kind}:{sides}"
    )
  if not importlib.util.find_spec("libtpu"):
    raise UserError(
      f"--topology={topology} is compiled by libtpu, which is not installed: pip install "
      f"'imgtx_jax[plan]' brings the one that jax {jax.__version__} is pinned to"
    )
  options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # its 2 cores are one device
  try:
    return topologies.get_topology_desc(topology, "tpu", **options).devices
  except Exception as error:
    raise UserError(
      f"--topology={topology}: {first_line(error)}; slices that exist are for example {_EXAMPLES}"
    ) from error


def _local(topology, kind, count):
  """Returns devices of this process."""
  try:
    devices = jax.local_devices(backend=kind)
  except RuntimeError as error:
    raise UserError(
      f"--topology={topology}: jax finds no {kind} here ({first_line(error)}); plan for {_EXAMPLES}"
    ) from error
  wanted = _count(topology, count or str(len(devices)))
  if wanted > len(devices):
    raise UserError(
      f"--topology={topology} asks for {wanted} devices, and there are {len(devices)} here; "
      "ask for as many"
    )
  return devices[:wanted]


def _count(topology, text):
  if not re.fullmatch("[1-9][0-9]{0,3}", text):  # JAX would make millions, one by one
    raise UserError(
      f"--topology={topology} has no number of devices from 1 to 9999; write for example cpu:4"
    )
  return int(text)
