"""GPUs and their published rates, and hosts full of them that need not be here.

Per GPU, from NVIDIA's data sheets of the SXM boards and of DGX A100, H100 and H200 (November 2026):

| | memory | bfloat16, dense | memory bandwidth | NVLink, both ways | network, each way |
|---|---|---|---|---|---|
| a100-40g | 40 GB | 312 TFLOP/s | 1,555 GB/s | 600 GB/s | 200 Gbit/s |
| a100 | 80 GB | 312 TFLOP/s | 2,039 GB/s | 600 GB/s | 200 Gbit/s |
| h100 | 80 GB | 989 TFLOP/s | 3,350 GB/s | 900 GB/s | 400 Gbit/s |
| h200 | 141 GB | 989 TFLOP/s | 4,800 GB/s | 900 GB/s | 400 Gbit/s |

The network is one adapter a GPU. Of the memory a CUDA program sees a little less than is sold.
"""

import importlib.util
import math
import os
import re
from collections import Counter
from typing import NamedTuple

import jax
from jax.experimental import topologies

from imgtx_jax.errors import UserError, first_line

_GIB = 2**30
_SHAPE = re.compile(r"([1-9]\d*)(?:x([1-9]\d*))?")
# Without a device nothing can be tuned, and Triton's products then fail in the tokenizer's step.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class Gpu(NamedTuple):
  """Rates of one GPU, and what the compiler asks of it.

  memory_bytes: what CUDA shows of its memory. flops: FLOP/s in bfloat16. hbm_bytes: of memory
  traffic a second. nvlink_bytes, network_bytes: sent a second within a host and to other hosts.
  capability: CUDA's (major, minor). cores: streaming multiprocessors, each with `lanes` float32
  lanes and `shared_kib` of shared memory. cache_mib: L2. clock: GHz.
  """

  name: str
  memory_bytes: float
  flops: float
  hbm_bytes: float
  nvlink_bytes: float
  network_bytes: float
  capability: tuple[int, int]
  cores: int
  lanes: int
  shared_kib: int
  cache_mib: int
  clock: float

  @property
  def usable_bytes(self):
    """Returns what a program may take: the part of the memory that JAX takes when it starts."""
    return memory_fraction() * self.memory_bytes

  def link_rate(self, kind, coords, sides):
    """Returns the bytes a second that a GPU sends in a collective.

    coords: (slice, host, GPU) of the group's GPUs. Between hosts every GPU of the group uses its
    own adapter, and a ring's bytes pass each host once: so many adapters share them, up to NVLink's
    rate. A permute and an all-to-all have one.
    """
    hosts = Counter(host for _, host, _ in coords)
    if len(hosts) == 1:
      return self.nvlink_bytes
    if kind in ("collective-permute", "all-to-all", "ragged-all-to-all"):
      return self.network_bytes
    return min(self.nvlink_bytes, min(hosts.values()) * self.network_bytes)

  def target_config(self):
    """Returns the text of XLA's GpuTargetConfigProto; fields newer than these are refused."""
    major, minor = self.capability
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {1024 * self.shared_kib}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.hbm_bytes:.0f}
  l2_cache_size: {self.cache_mib * 2**20}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory_bytes:.0f}
  shared_memory_per_block_optin: {1024 * (self.shared_kib - 1)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.name}"
"""


_A100 = dict(flops=312e12, nvlink_bytes=300e9, network_bytes=25e9)
_A100 |= dict(capability=(8, 0), cores=108, lanes=64, shared_kib=164, cache_mib=40, clock=1.41)
_H100 = dict(flops=989e12, nvlink_bytes=450e9, network_bytes=50e9)
_H100 |= dict(capability=(9, 0), cores=132, lanes=128, shared_kib=228, cache_mib=50, clock=1.98)
GPUS = {
  "a100-40g": Gpu("a100-40g", 39.4 * _GIB, hbm_bytes=1.555e12, **_A100),
  "a100": Gpu("a100", 79.1 * _GIB, hbm_bytes=2.039e12, **_A100),
  "h100": Gpu("h100", 79.1 * _GIB, hbm_bytes=3.35e12, **_H100),
  "h200": Gpu("h200", 139.7 * _GIB, hbm_bytes=4.8e12, **_H100),
}


def memory_fraction():
  """Returns the part of a GPU's memory that JAX takes, by the same variables that JAX reads."""
  names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
  name = next((n for n in names if os.environ.get(n)), None)
  try:
    fraction = float(os.environ[name]) if name else 0.75
    if not 0 < fraction < math.inf:
      raise ValueError
  except ValueError:
    raise UserError(
      f"{name}={os.environ[name]} is no part of a GPU's memory; set for example {name}=.92"
    ) from None
  return fraction


def open_hosts(topology):
  """Returns the devices of a --topology such as h100:8 or h100:2x8, hosts × GPUs of each."""
  kind, _, shape = topology.partition(":")
  match = _SHAPE.fullmatch(shape)
  if not match:
    raise UserError(
      f"--topology={topology} does not say how many GPUs there are; write for example {kind}:8, or "
      f"{kind}:2x8 for two hosts of eight"
    )
  hosts, each = (match[1], match[2]) if match[2] else (1, match[1])
  if not has_plugin():
    raise UserError(
      f"--topology={topology} is compiled by jax's CUDA plugin, which is not installed: pip "
      f"install 'imgtx_jax[plan-gpu]' brings it for jax {jax.__version__}, without CUDA itself"
    )
  try:
    return topologies.get_topology_desc(
      "", "cuda", target_config=GPUS[kind].target_config(), topology=f"1x{hosts}x{each}"
    ).devices
  except Exception as error:
    raise UserError(
      f"--topology={topology}: jax {jax.__version__} cannot compile for it ({first_line(error)}): "
      "the versions of jax, jax-cuda12-plugin and jax-cuda12-pjrt must be the same"
    ) from error


def has_plugin():
  """Whether jax's CUDA plugin is installed."""
  try:
    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))
  except ModuleNotFoundError:
    return False
