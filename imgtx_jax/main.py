"""Trains an experiment: the stages of a config, in order.

  python -m imgtx_jax.main --config configs/quickstart.py --workdir runs/quickstart

A finished stage is skipped, a broken-off one goes on from its last checkpoint. Several processes
train together on Cloud TPUs, SLURM and GKE, or by --coordinator_address, --num_processes and
--process_id; see launch/.
"""

import contextlib

import jax

from imgtx_jax.cli import command
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.data import sources
from imgtx_jax.distributed import processes, sharding
from imgtx_jax.errors import UserError
from imgtx_jax.io import outputs
from imgtx_jax.reporting import report
from imgtx_jax.stages import build
from imgtx_jax.training import (
  best_checkpoint,
  build_code_cache,
  data_record,
  loop,
  step_profile,
  warm_start,
  workdir,
)


def run(config, directory, only="", profile_steps=None):
  """Trains the stages of a config in the work directory `directory`, finished ones left out.

  only: the name of the one stage to train; all by default. profile_steps: the range of steps of
  each stage that are profiled. Raises UserError for a config, data or work directory that cannot be
  trained.
  """
  validation.check(config)
  outputs.check_folder("--workdir", directory)
  tasks = workdir.stage_runs(config)
  if only:
    tasks = [task for task in tasks if task.stage == only]
    if not tasks:
      raise UserError(
        f"--stage {only} is not in config.stages; choose one of {', '.join(config.stages)}"
      )
  training = sources.open_source(config.data.source, split="train", path=config.data.path)
  held_out = sources.open_source(config.data.source, split="validation", path=config.data.path)
  stages = [build(name, config, training.num_classes) for name in config.stages]
  bests = best_checkpoint.choose(config, stages)
  pairs = {"data": (training, held_out)}
  for stage in stages:
    pairs |= {name: (c.training, c.held_out) for name, c in stage.companions().items()}
  for name, pair in pairs.items():
    print("\n".join(sources.describe(name, *pair)), flush=True)
  workdir.claim(config, directory, training.class_names, data_record.describe(pairs))
  if config.init_from:
    warm_start.adopt(config, directory, training.class_names)
  devices = sharding.make_parallel(
    config.parallel.mode, fsdp=config.parallel.fsdp, rules=configs.sharding_rules(config)
  )
  for task in tasks:
    if workdir.is_finished(directory, task):
      print(f"{task.name}: finished before, nothing to do", flush=True)
      continue
    keeper = bests[task.stage]
    run_task(task, config, directory, training, held_out, devices, keeper, profile_steps)
    if processes.is_first():
      report.write(directory)
  print(f"report: {directory}/report.html", flush=True)


def run_task(task, config, directory, training, held_out, devices, keeper, profile_steps=None):
  """Trains one stage on the results of those before it; keeper: its best.Best."""
  stage = build(task.stage, config, training.num_classes)
  plan = workdir.stage_runs(config)
  before = plan[: plan.index(task)]
  for needed in stage.sources:
    if not any(t.stage == needed and workdir.is_finished(directory, t) for t in before):
      raise UserError(
        f"stage {task.stage} starts from stage {needed}, which is not finished in {directory}; "
        f"run the same command without --stage, or with --stage={needed} first"
      )
  before = [t for t in before if workdir.is_finished(directory, t)]
  results = workdir.results(directory, before, config.stage_checkpoint)
  inputs = stage.inputs(results)
  trainer = loop.Trainer(
    stage,
    config=config,
    directory=f"{directory}/{task.name}",
    restored=results,
    inputs=build_code_cache.prepare(inputs, training, config, directory) if inputs else training,
    training=training,
    held_out=held_out,
    parallel=devices,
    best=keeper,
    round_number=task.round,
    profile_steps=profile_steps,
  )
  print(trainer.parameters, flush=True)
  trainer.run()


def define_flags(flags):
  """Defines the command's flags in a cli.flag_groups.FlagGroups."""
  flags.group("Training")
  flags.config()
  flags.path("workdir", None, "Where checkpoints, metrics, pictures and the report go.")
  flags.string("stage", "", "Run this stage only.")
  flags.group("Looking inside")
  flags.string("profile_steps", "", "FIRST:LAST, such as 100:110: profiles them for TensorBoard.")
  flags.bool("debug_nans", "Stop at the first NaN, with a traceback to the operation; slow.")


def start(flags):
  """Runs the command."""
  steps = step_profile.parse(flags.profile_steps)
  # In this thread alone: set for all, it is off again after the first operation that suspends it.
  with jax.debug_nans(True) if flags.debug_nans else contextlib.nullcontext():
    run(flags.config, flags.workdir, flags.stage, steps)


COMMAND = command.Command(
  start,
  define_flags,
  __doc__,
  required=("config", "workdir"),
  processes="train",
)

if __name__ == "__main__":
  command.run(COMMAND)
