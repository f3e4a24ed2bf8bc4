"""Compiles one stage's training step ahead of time, for devices that need not be here.

Nothing is placed or run: states and batches are shapes.
"""

import functools
import math
import re
import time
from typing import Any, NamedTuple

import jax

from imgtx_jax.benchmark import common, model_flops
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.plan import gpus, hlo_costs
from imgtx_jax.plan.chips import Chip
from imgtx_jax.stages import STAGES, build

PARTS = ("params", "opt_state", "ema", "variables", "frozen")  # of a TrainState
_USED = (  # how libtpu and XLA name the size of a program that does not fit
  re.compile(r"[Uu]sed ([\d.]+)([KMG]) of"),
  re.compile(r"\(([\d.]+)([KMG])\) exceeds available"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Program(sharding.JitParallel):
  """JitParallel for shapes alone.

  pmap, a replica a device, is planned as a mesh that splits the batch only: the same arithmetic,
  and the same sums over the devices.
  """

  def lower_step(self, step, state, batch, key):
    """Returns the lowered step; state: shapes of one replica, batch: of the global batch."""
    state = self.abstract(state)
    batch, key = (
      jax.tree.map(lambda x, s=s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree)
      for tree, s in ((batch, self._batch), (key, self._replicated))
    )
    step = self._jit(step, state, has_metrics=True)
    platforms = {"tpu": ("tpu",), "gpu": ("cuda",)}.get(self.devices[0].platform)
    if self.devices[0] in jax.devices():
      platforms = None  # of this process
    return step.trace(state, batch, key).lower(lowering_platforms=platforms)

  def bytes_each(self, tree):
    """Returns the bytes of a state, or of a part of one, on one device; tree: shapes."""
    shardings = jax.tree.leaves(self.shardings(tree))
    return sum(
      math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
      for x, s in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


class Plan(NamedTuple):
  """The plan of one stage's training step. Bytes are on one device.

  state_bytes: {part of the state: bytes}, by the sharding rules, before the layouts' padding.
  held: {fsdp: bytes of state and gradients}.
  memory: XLA's memory_analysis: arguments, temporaries, program and peak; None if the compiler says
    that the program does not fit, and then needed_bytes is what it needs by that, or 0. A compiler
    for GPUs never says so: see fits.
  limit_bytes: what a program may take, or 0 if unknown.
  model_flops: products of the model on the global batch; run_flops: recomputed ones included.
  costs: hlo_costs.Costs, or None. link_seconds: {Collective: seconds a step}.
  """

  stage: str
  topology: str
  devices: int
  chip: Chip | gpus.Gpu | None
  pmap: bool
  fsdp: int
  batch: int
  steps: int
  dtype: str
  compile_seconds: float
  state_bytes: dict[str, int]
  held: dict[int, int]
  memory: dict[str, int] | None
  needed_bytes: float
  limit_bytes: float
  model_flops: int
  run_flops: int
  costs: Any
  link_seconds: dict[Any, float]

  @property
  def fits(self):
    """Whether a chip has the memory; True where its memory is unknown."""
    return bool(self.memory) and self.peak_bytes <= (self.limit_bytes or math.inf)

  @property
  def peak_bytes(self):
    """Returns the bytes that the program needs, or 0 if the compiler does not say."""
    return self.memory["peak"] if self.memory else self.needed_bytes

  @property
  def seconds(self):
    """Returns {resource: seconds a step at the chip's published rates}, or {} if unknown or if it
    does not fit."""
    if not self.chip or not self.costs or not self.fits:
      return {}
    return {
      "arithmetic": self.run_flops / self.devices / self.chip.flops,
      "memory": self.costs.memory_bytes / self.chip.hbm_bytes,
      "communication": sum(self.link_seconds.values()),
    }

  @property
  def step_seconds(self):
    """Returns (least, most) seconds of a step: all resources at once, and one after the other."""
    return max(self.seconds.values()), sum(self.seconds.values())

  @property
  def utilisation(self):
    """Returns (least, most) model FLOPs utilisation."""
    peak = self.devices * self.chip.flops
    return tuple(self.model_flops / (s * peak) for s in self.step_seconds[::-1])


def abstract_state(config, name, classes):
  """Returns (stage, shapes of its TrainState, its inputs) after the stages before it."""
  key, results = jax.eval_shape(lambda: jax.random.key(0)), {}
  for earlier in (*STAGES[name].sources, name):
    stage = build(earlier, config, classes)
    inputs = stage.inputs(results)

    def init(key, restored, stage=stage):
      return stage.init(key, common.batch_shape(config, stage), restored)

    state = jax.eval_shape(init, key, results)
    results[earlier] = {"params": state.params, "ema": state.ema, "variables": state.variables}
  return stage, state, inputs


def plan(config, name, classes, topology, devices, chip):
  """Returns the Plan of one stage; raises UserError if it could not run on these devices."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.stages = (name,)
    config.dtype = configs.compute_dtype(config, devices[0].platform)
  options = dict(fsdp=config.parallel.fsdp, rules=configs.sharding_rules(config))
  sharding.make_parallel(config.parallel.mode, devices=devices, **options)  # says what cannot be
  validation.check(config, len(devices))
  stage, state, inputs = abstract_state(config, name, classes)
  program = Program(devices, **options)
  batch, key = (
    common.batch_shapes(config, stage, inputs),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  model = model_flops.count_step(config, name, classes, state, inputs)
  run = model_flops.count(functools.partial(stage.step, axis=None), state, batch, key)
  lowered = program.lower_step(stage.step, state, batch, key)
  began = time.monotonic()
  compiled, needed = _compile(lowered, gpus.COMPILER_OPTIONS if _is_gpu(chip) else None)
  seconds = time.monotonic() - began
  costs = compiled and hlo_costs.measure(compiled.as_text(), len(devices))
  return Plan(
    stage=name,
    topology=topology,
    devices=len(devices),
    chip=chip,
    pmap=config.parallel.mode == "pmap",
    fsdp=config.parallel.fsdp,
    batch=stage.batch_size,
    steps=stage.steps,
    dtype=config.dtype,
    compile_seconds=seconds,
    state_bytes={part: program.bytes_each({part: getattr(state, part)}) for part in PARTS},
    held=_held(devices, options["rules"], state),
    memory=compiled and _memory(compiled),
    needed_bytes=needed,
    limit_bytes=_limit(devices[0], chip),
    model_flops=model,
    run_flops=run,
    costs=costs,
    link_seconds=_link_seconds(costs, program.mesh, chip) if chip and costs else {},
  )


def _is_gpu(chip):
  return isinstance(chip, gpus.Gpu)


def _compile(lowered, options=None):
  """Returns (compiled program, 0), or (None, bytes that it needs) if it does not fit."""
  try:
    return lowered.compile(options), 0.0
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if "No PTX compilation provider" in text:
      raise UserError(
        "programs for NVIDIA GPUs need ptxas, which is not here: pip install "
        "'imgtx_jax[plan-gpu]' brings it (nvidia-cuda-nvcc-cu12), as a CUDA toolkit does"
      ) from error
    if "RESOURCE_EXHAUSTED" not in text:
      raise
    found = [float(m[1]) * _UNITS[m[2]] for pattern in _USED for m in pattern.finditer(text)]
    return None, max(found, default=0.0)


def _memory(compiled):
  """Returns the bytes of a compiled program on one device, by XLA's memory_analysis."""
  stats = compiled.memory_analysis()
  sizes = {
    "arguments": stats.argument_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "program": stats.generated_code_size_in_bytes,
  }
  new = stats.output_size_in_bytes - stats.alias_size_in_bytes  # the state takes its old place
  return sizes | {"peak": sum(sizes.values()) + max(new, 0)}


def _limit(device, chip):
  """Returns the bytes of memory that a program may take, or 0 if unknown."""
  if chip:
    return chip.usable_bytes
  return (device.memory_stats() or {}).get("bytes_limit", 0)


def _held(devices, rules, state):
  """Returns {fsdp: bytes of the state and its gradients on one device} for fsdp 1, 2, 4, …"""
  sizes, fsdp = {}, 1
  while len(devices) % fsdp == 0:
    try:
      program = Program(devices, fsdp, rules)
      sizes[fsdp] = program.bytes_each(state) + program.bytes_each({"params": state.params})
    except UserError:  # a rule of the config that this fsdp does not divide
      pass
    fsdp *= 2
  return sizes


def _link_seconds(costs, mesh, chip):
  """Returns {Collective: seconds a step} of Costs, at the chip's rates on this mesh."""
  places = [device.coords for device in mesh.devices.flat]
  sides = [1 + max(axis) for axis in zip(*places, strict=True)]
  return {
    c: times * c.sent() / chip.link_rate(c.kind, [places[i] for i in c.group], sides)
    for c, times in costs.collectives.items()
  }
