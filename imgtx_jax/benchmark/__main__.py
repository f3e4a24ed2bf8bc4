"""Measures speed, as JSON: training steps, sampling, the input, checkpoints.

  python -m imgtx_jax.benchmark training --config FILE.py[:arg] [--stage NAME] [--steps 20]
  python -m imgtx_jax.benchmark sampling --config FILE.py[:arg] [--batch 4] [--dial]
  python -m imgtx_jax.benchmark input [--config FILE.py[:arg]]
  python -m imgtx_jax.benchmark checkpoint [--gigabytes 1]

The module of each kind in benchmark/ says what it prints. With --classes=K no source is asked.
"""

import json
import subprocess
import sys

import jax
from absl import flags
from ml_collections import config_flags

from imgtx_jax.benchmark import checkpoint, input_pipeline, sampling, training
from imgtx_jax.cli import command
from imgtx_jax.errors import UserError

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


def measure_training():
  """Prints a line for --stage, or one for each stage of the config."""
  if FLAGS.steps < 2:
    raise UserError(f"--steps={FLAGS.steps} is too few for a median; ask for 2 or more")
  if FLAGS.stage:
    result = training.measure(FLAGS.config, FLAGS.stage, FLAGS.steps, FLAGS.classes)
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


def measure_sampling():
  """Prints the speed of drawing codes, and with --dial that of images at each prefix."""
  if min(FLAGS.batch, FLAGS.steps) < 1:
    raise UserError(f"--batch={FLAGS.batch} and --steps={FLAGS.steps} must be 1 or more")
  show(sampling.measure(FLAGS.config, FLAGS.batch, FLAGS.steps, FLAGS.classes, FLAGS.dial))


def measure_input():
  """Prints the speed of the input."""
  if FLAGS.steps < 1:
    raise UserError(f"--steps={FLAGS.steps} must be 1 or more")
  show(input_pipeline.measure(FLAGS.config, FLAGS.steps))


def measure_checkpoint():
  """Prints the cost of saving and restoring."""
  show(checkpoint.measure(FLAGS.gigabytes))


KINDS = {
  "training": measure_training,
  "sampling": measure_sampling,
  "input": measure_input,
  "checkpoint": measure_checkpoint,
}


def show(result):
  """Prints a result as one JSON object, floats to four digits: more would be noise."""

  def rounded(value):
    if isinstance(value, list):
      return [rounded(x) for x in value]
    if isinstance(value, dict):
      return {name: rounded(x) for name, x in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value

  print(json.dumps(rounded(result)), flush=True)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "FILE.py[:argument]", lock_config=True)
  flags.DEFINE_string("stage", "", "training: this stage only.")
  flags.DEFINE_integer("steps", 20, "Training steps, or batches of images, to time.")
  flags.DEFINE_integer("batch", 4, "sampling: images at a time.")
  flags.DEFINE_bool("dial", False, "sampling: also images at each prefix k.")
  flags.DEFINE_float("gigabytes", 1.0, "checkpoint: the size of the state.")
  flags.DEFINE_integer("classes", 0, "How many classes there are; 0 asks the config's source.")
  jax.config.parse_flags_with_absl()
  jax.config.update("jax_enable_compilation_cache", False)
  command.run(main, accepts=f"kind of benchmark ({', '.join(KINDS)})")
