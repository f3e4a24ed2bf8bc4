"""The work directory of an experiment: its config, its classes, and its stages' folders.

config.json  classes.json  report.html  report.json
{round}-{stage}/   checkpoints/  pictures/  metrics.jsonl  summary.json (once the stage is done)
"""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import imgtx_jax
from imgtx_jax.config import defaults as configs
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.training import checkpoint
from imgtx_jax.training.train_state import TrainState

FORMAT = 2  # of config.json; 1 had no version in it
_VERSION = "imgtx_jax"  # its key in config.json, beside the config's
# Keys that may change between two calls of a run, because they do not change what is learned.
FREE_KEYS = (
  "guard",
  "log_steps",
  "evaluate_steps",
  "evaluate_images",
  "picture_steps",
  "pictures",
  "checkpoint_steps",
  "keep_checkpoints",
  "keep_every_steps",
  "parallel.mode",
  "parallel.fsdp",
  "parallel.rules",
  "pretrain.accumulate",
  "data.threads",
  "data.path",
  "style.data.path",
)


class StageRun(NamedTuple):
  """One stage in one round."""

  round: int
  stage: str

  @property
  def name(self):
    """The name of its folder in the work directory."""
    return f"{self.round}-{self.stage}"


def stage_runs(config):
  """Returns the StageRuns of an experiment in order: every stage once, then pretrain and finetune
  again for each further round."""
  tasks = [StageRun(1, stage) for stage in config.stages]
  for number in range(2, config.rounds + 1):
    tasks += [StageRun(number, s) for s in config.stages if s in ("pretrain", "finetune")]
  return tasks


def claim(config, workdir, class_names):
  """Writes config.json and classes.json into a work directory; in a used one the config must be
  the same.

  FREE_KEYS may differ. A key that was added to the package since counts as its default.

  Raises:
    UserError: if the directory belongs to another config, or to another version's format.
  """
  workdir = Path(workdir)
  flat = json.loads(json.dumps(configs.flatten(config)))
  path = workdir / "config.json"
  if path.exists():
    defaults = json.loads(json.dumps(configs.flatten(configs.default())))
    found = defaults | _read_flat(workdir)
    for key in sorted(set(flat) | set(found)):
      ours, theirs = flat.get(key, "absent"), found.get(key, "absent")
      if ours != theirs and key not in FREE_KEYS and key.rpartition(".")[2] not in configs.RUNNING:
        raise UserError(
          f"{workdir} belongs to another config: {key} is {theirs!r} there and {ours!r} here; "
          "use another --workdir, or set it back"
        )
  processes.wait_for_all("the old config is read")
  if processes.is_first():
    version = {_VERSION: {"version": imgtx_jax.__version__, "format": FORMAT}}
    write_atomically(path, json.dumps(version | flat, indent=1, ensure_ascii=False).encode())
    names = json.dumps(list(class_names), indent=0, ensure_ascii=False)
    write_atomically(workdir / "classes.json", names.encode())
  processes.wait_for_all("the config is written")
  if not path.exists():
    raise UserError(f"{path} of the first process is not here: name a --workdir that all share")


def read(workdir):
  """Returns (config, class names) of a work directory; UserError if nothing was trained there."""
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise UserError(
      f"{workdir} holds no config.json, so nothing was trained there; train first: "
      f"python -m imgtx_jax.main --config configs/quickstart.py --workdir {workdir}"
    )
  config = configs.default()
  flat = _read_flat(workdir)
  unknown = sorted(set(flat) - set(configs.flatten(config)))
  if unknown:
    raise UserError(
      f"{workdir}/config.json has {unknown[0]}, which this version of imgtx_jax does not know; use "
      "the version that trained it"
    )
  flat = {key: tuple(v) if isinstance(v, list) else v for key, v in flat.items()}
  config.update_from_flattened_dict(flat)
  return config.lock(), json.loads((workdir / "classes.json").read_text())


def _read_flat(workdir):
  """Returns {dotted key: value} of config.json; UserError if it has another version's format."""
  flat = json.loads((workdir / "config.json").read_text())
  written = flat.pop(_VERSION, {"version": "0.1.0", "format": 1})
  if written["format"] != FORMAT:
    raise UserError(
      f"{workdir} was written by imgtx_jax {written['version']}, whose configs this version, "
      f"{imgtx_jax.__version__}, does not read: use that version (git log imgtx_jax/__init__.py "
      "shows where it ends), or train anew in another --workdir"
    )
  return flat


def is_finished(workdir, task):
  """Returns whether a StageRun has written its summary."""
  return (Path(workdir) / task.name / "summary.json").exists()


def write_finished(workdir, stage, ema, variables, origin):
  """Writes the folder of a stage's first round, finished, with weights from elsewhere.

  ema, variables: NumPy trees, as TrainState has them. origin: a dict for the summary that says
  where the weights come from.
  """
  folder = Path(workdir) / StageRun(1, stage).name
  # Later stages read the average. params, the weights of the last step, would be a second copy on
  # the disk and in memory that nobody reads: a finished stage is not trained on.
  state = TrainState(
    step=np.int32(0), params={}, opt_state={}, ema=ema, variables=variables, frozen={}
  )
  with contextlib.closing(checkpoint.Checkpoints(folder / "checkpoints")) as checkpoints:
    checkpoints.save(0, state, wait=True)
  summary = {
    "stage": stage,
    "round": 1,
    "steps": 0,
    "seconds": 0.0,
    "corrupt_images": 0,
    "figures": {"parameters": sum(x.size for x in jax.tree.leaves(ema))},
  }
  write_summary(folder, summary | origin)


def write_summary(folder, summary):
  """Writes summary.json, which marks a stage as finished; called by all processes."""
  if processes.is_first():
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_atomically(Path(folder) / "summary.json", text.encode())
  processes.wait_for_all("the summary is written")


def results(workdir, tasks, start_from="last", chosen=()) -> dict[str, Any]:
  """Returns {stage: NumPy trees of its checkpoint, without optimizer state}.

  Args:
    workdir: the work directory.
    tasks: finished StageRuns; of a stage's rounds the last counts.
    start_from: config.start_from: "last", or "best" where a stage has kept one.
    chosen: {stage: "last" or "best"}; takes precedence.

  Raises:
    UserError: if a chosen best was not kept.
  """
  last = {task.stage: task for task in tasks}
  return {
    stage: _result(workdir, task, dict(chosen).get(stage), start_from)
    for stage, task in last.items()
  }


def _result(workdir, task, asked, start_from):
  """Returns the checkpoint of one StageRun; prints which one it is where there is a choice."""
  folder = Path(workdir) / task.name
  summary = json.loads((folder / "summary.json").read_text())
  best = summary.get("best")
  if asked == "best" and not best:
    raise UserError(
      f"--checkpoint=best: {task.name} of {workdir} has kept none by a figure; train with "
      "--config.best_metric=NAME, or leave the flag out for the last"
    )
  which = (asked or start_from) if best else "last"
  if best and best["step"] != summary["steps"] and jax.process_index() == 0:
    kept = f"step {best['step']}, {best['metric']} {best['value']:.5g}"
    used = "the best checkpoint" if which == "best" else "the last checkpoint, not the best"
    print(f"{task.name}: {used} ({kept})", flush=True)
  return checkpoint.load(folder / "checkpoints", step=best["step"] if which == "best" else None)[0]


def finished(config, workdir):
  """Returns the finished StageRuns in order, up to the first that is not finished."""
  done = []
  for task in stage_runs(config):
    if not is_finished(workdir, task):
      break
    done.append(task)
  return done
