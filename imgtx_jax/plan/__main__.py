"""Plans training without the machine: memory, speed, and what to change.

  python -m imgtx_jax.plan --config configs/imagenet256.py:xl --topology v5e:16x16
  python -m imgtx_jax.plan --config configs/imagenet256.py:l --topology h100:8 --stage pretrain

Compiles the training step of every stage of the config, or of --stage, ahead of time for a TPU
slice (v5e:16x16, v5p:2x4x4, v6e:8x8, v4:4x4x4; the extra "plan" brings the compiler), for GPUs
(h100:8, h100:2x8 for two hosts of eight, h200, a100, a100-40g; the extra "plan-gpu"), or for this
machine's devices (cpu:4, gpu). Nothing is trained and no weight is allocated. Prints for one chip:

  state a chip    parameters, optimizer state, averages, frozen networks, by the sharding rules
  memory a chip   what the compiler reserves: arguments (state and batch), temporaries (activations
                  and gradients), the program, against what the chip has
  products        FLOPs of the model's matrix products and convolutions, as benchmark counts them
  memory traffic and collectives      read from the compiled program, loops multiplied out
  a step          each at the chip's published rates (see chips.py and gpus.py): how long it takes
                  if all three overlap, and if none does
  utilisation     model FLOPs over the chips' peak in that time, and days for the config's steps

These are bounds, not measurements: products at the full rate, and nothing for input, evaluation,
checkpoints or refills of the bank. Of a GPU's memory a program may take what JAX takes, 75 % unless
XLA_CLIENT_MEM_FRACTION says otherwise; cuDNN's workspace is not counted.

With --sweep, a table over batch and fsdp sizes: --batch_sizes (1, 2 and 4 times the config's) and
--fsdp_sizes (1, 4 and 16, and the config's). Every line compiles the step once, at low effort: a
minute or so, for a TPU's program that moves more through memory than the real one. --effort=full
takes many times as long. The number of classes comes from the config's source or --classes; where
the data are not here, it is ImageNet's.
"""

from imgtx_jax.benchmark import common
from imgtx_jax.cli import command
from imgtx_jax.errors import UserError
from imgtx_jax.plan import chips, compile_step, report

_CLASSES = 1000


def main(flags):
  """Prints the plan of every stage that the flags ask for."""
  config, names = flags.config, tuple(flags.config.stages)
  if flags.stage:
    if flags.stage not in names:
      raise UserError(
        f"--stage={flags.stage} is not in config.stages; choose one of {', '.join(names)}"
      )
    names = (flags.stage,)
  chips.prepare(flags.topology, flags.effort)
  devices, chip = chips.open_topology(flags.topology)
  classes = number_of_classes(config, flags.classes)

  def make(config, name):
    return compile_step.plan(config, name, classes, flags.topology, devices, chip)

  with common.without_compilation_cache():
    if flags.sweep:
      sweep(flags, config, names, make)
    else:
      print_plans(flags.topology, config, names, make)


def print_plans(topology, config, names, make):
  """Prints the plan of each stage; raises UserError if none of them can run."""
  failed = {}
  for name in names:
    try:
      plan = make(config, name)
    except UserError as error:
      failed[name] = error
      print(f"{name} on {topology}: cannot run: {error}", flush=True)
      continue
    print("\n".join(report.lines(plan, config)), flush=True)
  if len(failed) == len(names):
    raise next(iter(failed.values()))


def sweep(flags, config, names, make):
  """Prints a table of the stages over batch and fsdp sizes, line by line."""
  print(report.SWEEP_HEAD, flush=True)
  for name in names:
    usual, fsdp = config[name].batch_size, config.parallel.fsdp
    batches = _sizes("batch_sizes", flags.batch_sizes) or (usual, 2 * usual, 4 * usual)
    splits = _sizes("fsdp_sizes", flags.fsdp_sizes) or sorted({1, 4, 16, fsdp})
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


def number_of_classes(config, classes):
  """Returns `classes`, or for 0 those of the config's source; ImageNet's, and prints so, where the
  data are not here."""
  try:
    return common.number_of_classes(config, classes)
  except UserError:
    print(f"{config.data.source} is not here: planned for {_CLASSES} classes (--classes=K)")
    return _CLASSES


def define_flags(flags):
  """Defines the command's flags in a cli.flag_groups.FlagGroups."""
  flags.group("What to plan")
  flags.config()
  flags.string("topology", None, "v5e:16x16, v5p:2x4x4, v6e:8x8, h100:8, h100:2x8, a100:8, cpu:4 …")
  flags.string("stage", "", "This stage only.")
  flags.integer("classes", 0, "How many classes there are; 0 asks the config's source.", least=0)
  flags.enum("effort", "low", ("low", "full"), "How long the compiler may think")
  flags.group("A table of several sizes")
  flags.bool("sweep", "Plan every batch size with every fsdp size.")
  flags.list("batch_sizes", [], "Global batch sizes; by default 1, 2 and 4 times the config's.")
  flags.list("fsdp_sizes", [], "By default 1, 4, 16 and the config's.")


COMMAND = command.Command(main, define_flags, __doc__, required=("config", "topology"))

if __name__ == "__main__":
  command.run(COMMAND)
