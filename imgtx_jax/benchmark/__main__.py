"""Measures speed, as JSON: training steps, sampling, the input, checkpoints; and parity.

  python -m imgtx_jax.benchmark training --config configs/quickstart.py --stage finetune
  python -m imgtx_jax.benchmark sampling --config configs/quickstart.py --dial
  python -m imgtx_jax.benchmark input
  python -m imgtx_jax.benchmark checkpoint --gigabytes 1
  python -m imgtx_jax.benchmark parity --config configs/quickstart.py

The module of each kind in benchmark/ says what it prints.
"""

import json
import subprocess
import sys

import jax

from imgtx_jax.benchmark import checkpoint, common, input_pipeline, parity, sampling, training
from imgtx_jax.cli import command
from imgtx_jax.errors import UserError


def measure_training(flags):
  """Prints a line for --stage, or one for each stage of the config."""
  if flags.stage:
    with common.without_compilation_cache():
      result = training.measure(
        flags.config, flags.stage, flags.steps, flags.classes, flags.profile
      )
    if jax.process_index() == 0:
      show(result)
    return
  for name in flags.config.stages:
    again = [sys.executable, "-m", "imgtx_jax.benchmark", *sys.argv[1:], f"--stage={name}"]
    code = subprocess.run(again).returncode
    if code < 0:
      raise UserError(
        f"the benchmark of {name} was killed by signal {-code} (9: out of memory?); lower "
        f"config.{name}.batch_size"
      )
    if code:
      sys.exit(code)


def measure_sampling(flags):
  """Prints the speed of drawing codes, and with --dial that of images at each prefix."""
  with common.without_compilation_cache():
    result = sampling.measure(flags.config, flags.batch, flags.steps, flags.classes, flags.dial)
  show(result)


def measure_input(flags):
  """Prints the speed of the input."""
  show(input_pipeline.measure(flags.config, flags.steps))


def measure_checkpoint(flags):
  """Prints the cost of saving and restoring."""
  show(checkpoint.measure(flags.gigabytes))


def measure_parity(flags):
  """Prints how far the accelerator's numbers are from the CPU's."""
  show(parity.measure(flags.config, flags.steps, flags.classes))


def show(result):
  """Prints a result as one JSON object, floats to four digits: more would be noise."""

  def rounded(value):
    if isinstance(value, list):
      return [rounded(x) for x in value]
    if isinstance(value, dict):
      return {name: rounded(x) for name, x in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value

  print(json.dumps(rounded(result)), flush=True)


def define_training(flags):
  """Defines the flags of `benchmark training`."""
  flags.group("Training")
  flags.config()
  flags.string("stage", "", "This stage only.")
  flags.integer("steps", 20, "Steps to time.", least=2)
  flags.integer("classes", 0, "How many classes there are; 0 asks the config's source.", least=0)
  flags.path("profile", "", "A folder for a trace of three more steps, for TensorBoard.")


def define_sampling(flags):
  """Defines the flags of `benchmark sampling`."""
  flags.group("Sampling")
  flags.config()
  flags.bool("dial", "Also measure images at each prefix k, of the finetune stage.")
  flags.integer("batch", 4, "Images at a time.", least=1)
  flags.integer("steps", 20, "Batches to time.", least=1)
  flags.integer("classes", 0, "How many classes there are; 0 asks the config's source.", least=0)


def define_parity(flags):
  """Defines the flags of `benchmark parity`."""
  flags.group("Parity")
  flags.config()
  flags.integer("steps", 5, "Steps of each stage.", least=1)
  flags.integer("classes", 0, "How many classes there are; 0 asks the config's source.", least=0)


def define_input(flags):
  """Defines the flags of `benchmark input`."""
  flags.group("Input")
  flags.config("Measure this experiment's images; generated photographs by default.")
  flags.integer("steps", 20, "Batches to time.", least=1)


def define_checkpoint(flags):
  """Defines the flags of `benchmark checkpoint`."""
  flags.group("Checkpoint")
  flags.float("gigabytes", 1.0, "The size of the state.")


COMMANDS = {
  "training": command.Command(
    measure_training, define_training, training.__doc__, required=("config",)
  ),
  "sampling": command.Command(
    measure_sampling, define_sampling, sampling.__doc__, required=("config",)
  ),
  "input": command.Command(measure_input, define_input, input_pipeline.__doc__),
  "parity": command.Command(measure_parity, define_parity, parity.__doc__, required=("config",)),
  "checkpoint": command.Command(measure_checkpoint, define_checkpoint, checkpoint.__doc__),
}

if __name__ == "__main__":
  command.run(COMMANDS, __doc__)
