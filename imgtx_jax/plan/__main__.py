"""Plans training without the machine: python -m imgtx_jax.plan --config FILE.py[:arg] --topology T

Compiles the training step of every stage of the config, or of --stage, ahead of time for a TPU
slice (v5e:16x16, v5p:2x4x4, v6e:8x8, v4:4x4x4; the extra "plan" brings the compiler), or for this
machine's devices (cpu:4, gpu). Nothing is trained and no weight is allocated. Prints for one chip:

  state a chip    parameters, optimizer state, averages, frozen networks, by the sharding rules
  memory a chip   what the compiler reserves: arguments (state and batch), temporaries (activations
                  and gradients), the program, against what the chip has
  products        FLOPs of the model's matrix products and convolutions, as benchmark counts them
  memory traffic and collectives      read from the compiled program, loops multiplied out
  a step          each at the chip's published rates (see chips.py): how long it takes if all three
                  overlap, and if none does
  utilisation     model FLOPs over the chips' peak in that time, and days for the config's steps

These are bounds, not measurements: products at the full rate, and nothing for input, evaluation,
checkpoints or refills of the bank. With --sweep, a table over batch and fsdp sizes: --batch_sizes
(1, 2 and 4 times the config's) and --fsdp_sizes (1, 4 and 16, and the config's). Every line
compiles the step once: one to six minutes on one core for the large GPTs. Less with
--jax_exec_time_optimization_effort=-1, for a program that moves more through memory than the real
one. The number of classes comes from the config's source or --classes; where the data are not here,
it is ImageNet's.
"""

import jax
from absl import flags
from ml_collections import config_flags

from imgtx_jax.cli import command
from imgtx_jax.data import sources
from imgtx_jax.errors import UserError
from imgtx_jax.plan import chips, compile_step, report

FLAGS = flags.FLAGS
_CLASSES = 1000


def main():
  """Plans what the flags ask for."""
  config, names = FLAGS.config, tuple(FLAGS.config.stages)
  if FLAGS.stage:
    if FLAGS.stage not in names:
      raise UserError(
        f"--stage={FLAGS.stage} is not in config.stages; choose one of {', '.join(names)}"
      )
    names = (FLAGS.stage,)
  chips.prepare(FLAGS.topology)
  devices, chip = chips.open_topology(FLAGS.topology)
  classes = number_of_classes(config)

  def make(config, name):
    return compile_step.plan(config, name, classes, FLAGS.topology, devices, chip)

  if FLAGS.sweep:
    sweep(config, names, make)
    return
  failed = {}
  for name in names:
    try:
      found = make(config, name)
    except UserError as error:
      failed[name] = error
      print(f"{name} on {FLAGS.topology}: cannot run: {error}", flush=True)
      continue
    print("\n".join(report.lines(found, config)), flush=True)
  if len(failed) == len(names):
    raise next(iter(failed.values()))


def sweep(config, names, make):
  """Prints a table of the stages over batch and fsdp sizes, line by line."""
  print(report.SWEEP_HEAD, flush=True)
  for name in names:
    usual, fsdp = config[name].batch_size, config.parallel.fsdp
    batches = _sizes("batch_sizes", FLAGS.batch_sizes) or (usual, 2 * usual, 4 * usual)
    splits = _sizes("fsdp_sizes", FLAGS.fsdp_sizes) or sorted({1, 4, 16, fsdp})
    for batch in batches:
      for split in splits:
        try:
          row = report.sweep_row(make(_resized(config, name, batch, split), name))
        except UserError as error:
          row = report.failed_row(name, batch, split, error)
        print(row, flush=True)


def _sizes(flag, values):
  if bad := [v for v in values if not v.isdecimal() or int(v) < 1]:
    raise UserError(f"--{flag} has {bad[0]!r}, which is no size; write for example 256,512")
  return tuple(int(v) for v in values)


def _resized(config, name, batch, fsdp):
  """The config with another batch and split; as many images as before."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    options = config[name]
    options.steps = max(1, options.steps * options.batch_size // batch)
    options.batch_size = batch
    config.parallel.mode, config.parallel.fsdp = "jit", fsdp
  return config


def number_of_classes(config):
  """--classes, or those of the config's source; ImageNet's, with a word, where it is not here."""
  if FLAGS.classes:
    return FLAGS.classes
  try:
    return sources.open_source(config.data.source, split="train", path=config.data.path).num_classes
  except UserError:
    print(f"{config.data.source} is not here: planned for {_CLASSES} classes (--classes=K)")
    return _CLASSES


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "FILE.py[:argument]", lock_config=True)
  flags.DEFINE_string("topology", None, "v5e:16x16, v5p:2x4x4, v6e:8x8, v4:4x4x4, cpu:4 or gpu.")
  flags.DEFINE_string("stage", "", "This stage only.")
  flags.DEFINE_integer("classes", 0, "How many classes there are; 0 asks the config's source.")
  flags.DEFINE_bool("sweep", False, "A table over batch and fsdp sizes.")
  flags.DEFINE_list("batch_sizes", [], "Of --sweep.")
  flags.DEFINE_list("fsdp_sizes", [], "Of --sweep.")
  jax.config.parse_flags_with_absl()
  jax.config.update("jax_enable_compilation_cache", False)
  command.run(main, required=("config", "topology"))
