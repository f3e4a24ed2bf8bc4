"""Measures speed: python -m imgtx_jax.benchmark train --config FILE.py[:arg] [--stage NAME]

train prints one JSON object a stage of the config. Images are random bytes already in memory, or
random codes where a cache of them would be read, and the stages before it have random weights: no
work directory is needed, and of the data only the number of classes. Each stage runs in a process
of its own, for the peak of memory only grows within one.

  images_per_second        the batch over step_seconds: training's rate while the input keeps up
  step_seconds             median over --steps steps, the batch's way to the device included
  compile_seconds          the first step less a median one; no program comes from a cache
  peak_memory_bytes        of the first accelerator; on a CPU, of the whole process
  parameters               of all networks that the stage trains
  flops_per_step           products of the model on the global batch, none of them recomputed
  matmul_flops_per_second  of large matrix products in the compute dtype on one device, right after
  model_flops_utilisation  flops_per_step over what all devices could do at that rate

What the other kinds print stands in benchmark_KIND.py: codes is of their cache; sample, of drawing
--batch images at a time from the GPT; dial, of images at each k; discriminator, of its penalties;
input, of the config's or generated images; checkpoint. With --classes=K no source is asked.
"""

import functools
import json
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from imgtx_jax.benchmark import checkpoint as benchmark_checkpoint
from imgtx_jax.benchmark import codes as benchmark_codes
from imgtx_jax.benchmark import dial as benchmark_dial
from imgtx_jax.benchmark import discriminator as benchmark_discriminator
from imgtx_jax.benchmark import input_pipeline as benchmark_input
from imgtx_jax.benchmark import model_flops as flops
from imgtx_jax.benchmark import sampling as benchmark_sample
from imgtx_jax.cli import command
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.data import sources
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.stages import STAGES, build
from imgtx_jax.training.memory import peak_memory_bytes

FLAGS = flags.FLAGS


def main(arguments):
  """Runs the kind of benchmark that the first argument names."""
  if len(arguments) > 1 or arguments[0] not in KINDS:
    raise UserError(
      f"{' '.join(arguments)!r} is no kind of benchmark; choose one of: {', '.join(KINDS)}"
    )
  if FLAGS.config is None and arguments[0] not in ("input", "checkpoint"):
    raise UserError("--config is missing; run with --help to see all flags")
  KINDS[arguments[0]]()


def train():
  """Training steps: one line for --stage, or one for each stage of the config."""
  if FLAGS.steps < 2:
    raise UserError(f"--steps={FLAGS.steps} is too few for a median; ask for 2 or more")
  if FLAGS.stage:
    result = measure_training(FLAGS.config, FLAGS.stage, FLAGS.steps)
    if jax.process_index() == 0:
      show(result)
    return
  for name in FLAGS.config.stages:
    again = [sys.executable, "-m", "imgtx_jax.benchmark", *sys.argv[1:], f"--stage={name}"]
    code = subprocess.run(again).returncode
    if code < 0:
      raise UserError(
        f"the benchmark of {name} was killed by signal {-code} (9: out of memory?); lower "
        f"config.{name}.batch_size"
      )
    if code:
      sys.exit(code)


def codes():
  """The cache of codes beside the encoder alone, on random weights."""
  show(benchmark_codes.measure(FLAGS.config, untrained))


def sample():
  """Codes from the GPT, on random weights."""
  check_batches()
  classes = number_of_classes(FLAGS.config)
  show(benchmark_sample.measure(FLAGS.config, classes, FLAGS.batch, FLAGS.steps))


def dial():
  """Images at every setting of the dial k."""
  check_batches()
  classes = number_of_classes(FLAGS.config)
  results = untrained(FLAGS.config, "finetune", classes, itself=True)
  show(benchmark_dial.measure(FLAGS.config, classes, results, FLAGS.batch, FLAGS.steps))


def discriminator():
  """Steps of the discriminator of --stage, with each kind of penalty."""
  check_batches()
  stage = FLAGS.stage or "finetune"
  if stage not in STAGES:
    raise UserError(f"--stage={stage} is no stage; choose one of {', '.join(STAGES)}")
  classes = number_of_classes(FLAGS.config)
  show(benchmark_discriminator.measure(FLAGS.config, stage, classes, FLAGS.steps))


def images():
  """The input."""
  show(benchmark_input.measure(FLAGS.config, FLAGS.steps))


def checkpoint():
  """Saving and restoring."""
  show(benchmark_checkpoint.measure(FLAGS.gigabytes))


KINDS = {
  "train": train,
  "codes": codes,
  "sample": sample,
  "dial": dial,
  "discriminator": discriminator,
  "input": images,
  "checkpoint": checkpoint,
}


def check_batches():
  """UserError unless there is something to time."""
  if min(FLAGS.batch, FLAGS.steps) < 1:
    raise UserError(f"--batch={FLAGS.batch} and --steps={FLAGS.steps} must be 1 or more")


def show(result):
  """Prints figures as one JSON object, to four digits: more would be noise."""

  def rounded(value):
    if isinstance(value, list):
      return [rounded(x) for x in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value

  print(json.dumps({name: rounded(value) for name, value in result.items()}), flush=True)


def number_of_classes(config):
  """--classes, or those of the config's source."""
  if FLAGS.classes:
    return FLAGS.classes
  source = sources.open_source(config.data.source, split="train", path=config.data.path)
  return source.num_classes


def measure_training(config, name, steps):
  """Figures of `steps` training steps of one stage; see the module's docstring."""
  validation.check(config)
  if name not in config.stages:
    raise UserError(
      f"--stage={name} is not in config.stages; choose one of {', '.join(config.stages)}"
    )
  classes = number_of_classes(config)
  stage = build(name, config, classes)
  results = untrained(config, name, classes)
  inputs = stage.inputs(results)
  state = stage.init(jax.random.key(0), batch_shape(config, stage), results)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  devices = sharding.make_parallel(
    config.parallel.mode, fsdp=config.parallel.fsdp, rules=configs.sharding_rules(config)
  )
  state = devices.put_state(state)
  batches = random_batches(config, stage, classes, inputs)
  first, median = time_steps(stage, state, devices, batches, steps)
  memory = peak_memory_bytes()
  dtype = configs.compute_dtype(config)
  model_flops = count_flops(config, name, classes, shapes, inputs)
  rate = matmul_rate(dtype, *((2048, 2) if jax.default_backend() == "cpu" else (8192, 16)))
  return {
    "stage": name,
    "images_per_second": stage.batch_size / median,
    "step_seconds": median,
    "compile_seconds": max(first - median, 0.0),
    "peak_memory_bytes": memory,
    "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
    "flops_per_step": model_flops,
    "matmul_flops_per_second": rate,
    "model_flops_utilisation": model_flops / (median * rate * jax.device_count()),
    "batch_size": stage.batch_size,
    "steps": steps,
    "dtype": dtype,
    "parallel": config.parallel.mode,
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def batch_shape(config, stage):
  """Of a stage's global batch of images."""
  return (stage.batch_size, config.data.image_size, config.data.image_size, 3)


def untrained(config, name, classes, itself=False):
  """What the stages before `name` would leave, and itself if asked, with random weights:
  {stage: NumPy trees}."""
  results = {}
  for earlier in (*STAGES[name].sources, *([name] if itself else [])):
    stage = build(earlier, config, classes)
    state = stage.init(jax.random.key(0), batch_shape(config, stage), results)
    results[earlier] = jax.device_get(
      {"params": state.params, "ema": state.ema, "variables": state.variables}
    )
  return results


def batch_shapes(config, stage, inputs):
  """The shapes and types of a stage's global batch: images, or codes where it reads a cache."""
  shape = batch_shape(config, stage)
  batch = {"label": jax.ShapeDtypeStruct(shape[:1], np.int32)}
  for name in stage.companion_names:
    batch[name] = jax.ShapeDtypeStruct(shape, np.uint8)
  if inputs is None:
    return batch | {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
  return batch | {"codes": jax.ShapeDtypeStruct((shape[0], inputs.num_codes), np.int32)}


def random_batches(config, stage, classes, inputs):
  """This process's share of two batches, to be taken in turn."""
  rng = np.random.default_rng(0)
  limits = {"label": classes, "image": 256, "codes": inputs and inputs.codebook_size}
  limits |= dict.fromkeys(stage.companion_names, 256)

  def draw(name, part):
    share = (part.shape[0] // jax.process_count(), *part.shape[1:])
    return rng.integers(0, limits[name], share, part.dtype)

  shapes = batch_shapes(config, stage, inputs)
  return [{name: draw(name, part) for name, part in shapes.items()} for _ in range(2)]


def time_steps(stage, state, devices, batches, steps):
  """(seconds of the first step, compiling included; median seconds of the later ones).

  As in training, the next step is dispatched before the last one is waited for.
  """
  step = devices.compile_step(stage.step)
  key = jax.random.key(0)

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
  seconds = np.diff(ends)
  return seconds[0], statistics.median(seconds[2:])


def count_flops(config, name, classes, state, inputs=None):
  """Model FLOPs of a step on the global batch; state: its shapes. Rematerialisation and attention
  kernels change how a step runs, not what the model is: both are off here."""
  plain = config.copy_and_resolve_references()
  with plain.unlocked():
    for network in plain.values():
      if isinstance(network, ConfigDict) and "remat" in network:
        network.update(remat="none", implementation="xla")
  stage = build(name, plain, classes)
  step = functools.partial(stage.step, axis=None)
  return flops.count(step, state, batch_shapes(config, stage, inputs), jax.random.key(0))


def matmul_rate(dtype, side, chain):
  """FLOP/s of `chain` products of matrices [side, side] on one device: the median of seven runs, as
  for the steps, so that both slow down alike on a busy machine."""

  @jax.jit
  def run(x, w):
    for _ in range(chain):
      x = x @ w
    return x

  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  w = x / side**0.5  # keeps the products as large as they were
  seconds = []
  for _ in range(8):
    began = time.monotonic()
    jax.block_until_ready(run(x, w))
    seconds.append(time.monotonic() - began)
  return 2 * side**3 * chain / statistics.median(seconds[1:])


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "FILE.py[:argument]", lock_config=True)
  flags.DEFINE_string("stage", "", "This stage only.")
  flags.DEFINE_integer("steps", 20, "Training steps, or batches of images, to time.")
  flags.DEFINE_integer("batch", 4, "sample, dial: images at a time.")
  flags.DEFINE_float("gigabytes", 1.0, "checkpoint: the size of the state.")
  flags.DEFINE_integer("classes", 0, "How many classes there are; 0 asks the config's source.")
  jax.config.parse_flags_with_absl()
  jax.config.update("jax_enable_compilation_cache", False)
  command.run(main, accepts=f"kind of benchmark ({', '.join(KINDS)})")
