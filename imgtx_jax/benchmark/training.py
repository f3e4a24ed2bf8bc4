"""benchmark training: the speed of training steps, one JSON object for each stage of the config.

  python -m imgtx_jax.benchmark training --config configs/quickstart.py --stage finetune

Images are random bytes already in memory, or random codes where a cache of codes would be read, and
the stages before have random weights: no work directory is needed, and of the data only the number
of classes. Each stage runs in a process of its own, because peak memory only grows within one.

  images_per_second        batch size over step_seconds: training's rate while the input keeps up
  step_seconds             median over --steps steps, the batch's transfer to the device included
  compile_seconds          the first step less a median one; no program comes from a cache
  peak_memory_bytes        of the first accelerator; on a CPU, of the whole process
  parameters               of all networks that the stage trains
  flops_per_step           products of the model on the global batch, none of them recomputed
  matmul_flops_per_second  of large matrix products in the compute dtype on one device, right after
  model_flops_utilisation  flops_per_step over what all devices could do at that rate
  largest_costs            with --profile: the three operations that take most of the devices' time,
                           [{name, fraction}], in a trace that --profile names a folder for
"""

import contextlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.benchmark import common, model_flops, profile_costs
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.distributed import processes, sharding
from imgtx_jax.errors import UserError
from imgtx_jax.models.layers import precision
from imgtx_jax.stages import build

PROFILED_STEPS = 3


def measure(config, name, steps, classes=0, profile=""):
  """Measures `steps` training steps of the stage `name`; returns the object of the module's
  docstring. classes: see common.number_of_classes; profile: a folder for a trace, or ""."""
  validation.check(config)
  if name not in config.stages:
    raise UserError(
      f"--stage={name} is not in config.stages; choose one of {', '.join(config.stages)}"
    )
  classes = common.number_of_classes(config, classes)
  stage = build(name, config, classes)
  results = common.random_sources(config, name, classes)
  inputs = stage.inputs(results)
  devices = sharding.make_parallel(
    config.parallel.mode, fsdp=config.parallel.fsdp, rules=configs.sharding_rules(config)
  )
  state, shapes = init_state(stage, devices, common.batch_shape(config, stage), results)
  batches = random_batches(config, stage, classes, inputs)
  first, median = time_steps(stage, state, devices, batches, steps, profile)
  costs = {"largest_costs": profile_costs.largest(profile)} if profile else {}
  memory = processes.peak_memory_bytes()
  flops = model_flops.count_step(config, name, classes, shapes, inputs)
  on_cpu = jax.default_backend() == "cpu"
  rate = matmul_rate(configs.compute_dtype(config), *((2048, 2) if on_cpu else (8192, 16)))
  return (
    {
      "stage": name,
      "images_per_second": stage.batch_size / median,
      "step_seconds": median,
      "compile_seconds": max(first - median, 0.0),
      "peak_memory_bytes": memory,
      "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
      "flops_per_step": flops,
      "matmul_flops_per_second": rate,
      "model_flops_utilisation": flops / (median * rate * jax.device_count()),
      "batch_size": stage.batch_size,
      "steps": steps,
      "parallel": config.parallel.mode,
    }
    | costs
    | common.machine(config)
  )


def init_state(stage, devices, batch_shape, results):
  """Returns (the stage's first state, placed on devices; the shapes of one replica).

  The state is computed by a compiled function, as in training/loop.py; frozen networks are placed
  as they are.
  """
  key = jax.random.key(0)
  frozen = stage.frozen(results)

  def init(key, results):
    return stage.init(key, batch_shape, results).replace(frozen={})

  shapes = jax.eval_shape(init, key, results)
  as_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), frozen)
  state = devices.init_state(init, key, results)
  state = state.replace(frozen=devices.put_state({"frozen": frozen})["frozen"])
  return state, shapes.replace(frozen=as_shapes)


def random_batches(config, stage, classes, inputs):
  """Returns two batches to take in turn, this process's part: [{name: array}]."""
  rng = np.random.default_rng(0)
  limits = {"label": classes, "image": 256, "codes": inputs and inputs.codebook_size}
  limits |= dict.fromkeys(stage.companion_names, 256)

  def draw(name, part):
    shape = (part.shape[0] // jax.process_count(), *part.shape[1:])
    return rng.integers(0, limits[name], shape, part.dtype)

  shapes = common.batch_shapes(config, stage, inputs)
  return [{name: draw(name, part) for name, part in shapes.items()} for _ in range(2)]


def time_steps(stage, state, devices, batches, steps, profile=""):
  """Returns (seconds of the first step with compilation, median seconds of the later ones).

  As in training, the next step is dispatched before the last one is waited for. profile: a folder
  for a trace of PROFILED_STEPS more, or "".
  """
  step = devices.compile_step(stage.step)
  key = devices.put_key(jax.random.key(0))

  def run(i):
    nonlocal state
    state, metrics = step(state, devices.put_batch(batches[i % len(batches)]), key)
    return metrics

  ends = [time.monotonic()]
  for i in range(2):  # one compiles, one takes whatever else comes up once
    jax.block_until_ready(run(i))
    ends.append(time.monotonic())
  running = run(0)
  for i in range(1, steps + 1):
    following = run(i)
    jax.block_until_ready(running)
    ends.append(time.monotonic())
    running = following
  jax.block_until_ready(running)
  with jax.profiler.trace(profile) if profile else contextlib.nullcontext():
    for i in range(PROFILED_STEPS if profile else 0):
      jax.block_until_ready(run(i))
  seconds = np.diff(ends)
  return seconds[0], statistics.median(seconds[2:])


def matmul_rate(dtype, side, chain):
  """Returns the FLOP/s of `chain` products of matrices [side, side] on one device.

  It is the median of seven runs, as for the steps, so that both slow down alike on a busy machine.
  """

  @jax.jit
  def run(x, w):
    for _ in range(chain):
      x = jnp.matmul(x, w, precision=precision(x.dtype))  # as in the networks
    return x

  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  w = x / side**0.5  # keeps the products as large as they were
  return 2 * side**3 * chain / common.median_seconds(lambda: run(x, w), 7)
