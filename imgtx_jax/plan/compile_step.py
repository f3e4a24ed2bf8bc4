"""One stage's training step, compiled ahead of time for devices that need not be here.

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
from imgtx_jax.plan import traffic
from imgtx_jax.plan.chips import Chip
from imgtx_jax.stages import STAGES, build

PARTS = ("params", "opt_state", "ema", "variables", "frozen")  # of a state
_USED = (  # what libtpu and XLA say of a program that does not fit
  re.compile(r"[Uu]sed ([\d.]+)([KMG]) of"),
  re.compile(r"\(([\d.]+)([KMG])\) exceeds available"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Program(sharding.JitParallel):
  """A step as JitParallel runs it, for shapes. A replica a device (pmap) is planned as a mesh that
  splits the batch only: the same arithmetic, and the same sums over the devices."""

  def lower_step(self, step, state, batch, key):
    """The lowered step; state of one replica, batch the global one: shapes."""
    state = self.abstract(state)
    batch, key = (
      jax.tree.map(lambda x, s=s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree)
      for tree, s in ((batch, self._batch), (key, self._replicated))
    )
    step = self._jit(step, state, has_metrics=True)
    platforms = ("tpu",) if self.devices[0].platform == "tpu" else None  # None: of this process
    return step.trace(state, batch, key).lower(lowering_platforms=platforms)

  def bytes_each(self, tree):
    """Bytes of a state or a part of one, shapes, on one device."""
    shardings = jax.tree.leaves(self.shardings(tree))
    return sum(
      math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
      for x, s in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


class Plan(NamedTuple):
  """Of a stage's step on one device each: bytes and seconds.

  state_bytes: {part of the state: bytes}, by the sharding rules, before the layouts' padding.
  memory: arguments, temporaries, program and peak, or None where the program does not fit; then
  needed_bytes is what the compiler says that it needs, or 0. model_flops: products of the model on
  the global batch; run_flops: those of the step, what it recomputes included. held: {fsdp: bytes of
  state and gradients}. traffic: a traffic.Traffic, or None.
  """

  stage: str
  topology: str
  devices: int
  chip: Chip | None
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
  traffic: Any
  link_seconds: dict[Any, float]

  @property
  def seconds(self):
    """{what: seconds a step at the chip's published rates}, or {} where there are none."""
    if not self.chip or not self.traffic:
      return {}
    return {
      "arithmetic": self.run_flops / self.devices / self.chip.flops,
      "memory": self.traffic.memory_bytes / self.chip.hbm_bytes,
      "communication": sum(self.link_seconds.values()),
    }

  @property
  def step_seconds(self):
    """(least, most) of a step: all three at once, and one after the other."""
    return max(self.seconds.values()), sum(self.seconds.values())

  @property
  def utilisation(self):
    """(least, most): the model's products over what the chips could do in a step."""
    peak = self.devices * self.chip.flops
    return tuple(self.model_flops / (s * peak) for s in self.step_seconds[::-1])


def abstract_state(config, name, classes):
  """(stage, shapes of its state, its inputs), on what the stages before it would leave."""
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
  """The Plan of one stage; UserError if it could not run on these devices."""
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
  compiled, needed = _compile(lowered)
  seconds = time.monotonic() - began
  moved = compiled and traffic.measure(compiled.as_text(), len(devices))
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
    traffic=moved,
    link_seconds=_link_seconds(moved, program.mesh, chip) if chip and moved else {},
  )


def _compile(lowered):
  """(compiled program, 0), or (None, bytes that it needs) where it does not fit."""
  try:
    return lowered.compile(), 0.0
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
      raise
    found = [float(m[1]) * _UNITS[m[2]] for pattern in _USED for m in pattern.finditer(text)]
    return None, max(found, default=0.0)


def _memory(compiled):
  """Bytes of a compiled program on one device."""
  stats = compiled.memory_analysis()
  sizes = {
    "arguments": stats.argument_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "program": stats.generated_code_size_in_bytes,
  }
  new = stats.output_size_in_bytes - stats.alias_size_in_bytes  # the state takes its old place
  return sizes | {"peak": sum(sizes.values()) + max(new, 0)}


def _limit(device, chip):
  """Bytes of memory that a program may take, or 0 where nobody says."""
  if chip:
    return chip.usable_bytes
  return (device.memory_stats() or {}).get("bytes_limit", 0)


def _held(devices, rules, state):
  """{fsdp: bytes of the state and of its gradients on one device} for fsdp 1, 2, 4, …"""
  sizes, fsdp = {}, 1
  while len(devices) % fsdp == 0:
    try:
      program = Program(devices, fsdp, rules)
      sizes[fsdp] = program.bytes_each(state) + program.bytes_each({"params": state.params})
    except UserError:  # a rule of the config that this fsdp does not divide
      pass
    fsdp *= 2
  return sizes


def _link_seconds(moved, mesh, chip):
  """{Collective: seconds a step} of a Traffic, at the chip's rates on this mesh."""
  places = [device.coords for device in mesh.devices.flat]
  sides = [1 + max(axis) for axis in zip(*places, strict=True)]
  return {
    c: times * c.sent() / chip.link_rate(c.kind, [places[i] for i in c.group], sides)
    for c, times in moved.collectives.items()
  }
