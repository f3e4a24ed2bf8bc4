"""The work directory of an experiment: its config, its classes, and its stages' folders.

config.json  classes.json  data.json  report.html  report.json
{round}-{stage}/   checkpoints/  pictures/  metrics.jsonl  summary.json (once the stage is done)
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import imgtx_jax
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError, first_line
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.training import checkpoint, data_record
from imgtx_jax.training.train_state import TrainState

FORMAT = 2  # of config.json; 1 had no version in it
_VERSION = "imgtx_jax"  # its key in config.json, beside the config's
# Keys that may change between two calls of a run, because they do not change what is learned.
FREE_KEYS = (
  "guard",
  "log_steps",
  "evaluate_steps",
  "evaluate_images",
  "final_evaluate_images",
  "picture_steps",
  "pictures",
  "checkpoint_steps",
  "keep_checkpoints",
  "keep_every_steps",
  "parallel.mode",
  "parallel.fsdp",
  "parallel.rules",
  "remat",
  "attention_kernel",
  "unroll",
  "pretrain.grad_accum_steps",
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
    """Returns the name of its folder in the work directory."""
    return f"{self.round}-{self.stage}"


def stage_runs(config):
  """Returns the StageRuns of an experiment in order: every stage once, then pretrain and finetune
  again for each further round."""
  tasks = [StageRun(1, stage) for stage in config.stages]
  for number in range(2, config.rounds + 1):
    tasks += [StageRun(number, s) for s in config.stages if s in ("pretrain", "finetune")]
  return tasks


def claim(config, workdir, class_names, data=None):
  """Writes config.json, classes.json and data.json into a work directory.

  In a used one the config, the classes and the images must be the same, else nothing is written.
  FREE_KEYS may differ. A key that was added to the package since counts as its default.

  Args:
    config: the experiment's.
    workdir: the work directory.
    class_names: of the data, in order.
    data: what data_record.describe returns; None where there are no images.

  Raises:
    UserError: if the directory belongs to another config, other classes, other images, or to
      another version's format.
  """
  workdir, names = Path(workdir), list(class_names)
  path = workdir / "config.json"
  flat = _plain(config)
  _check_config(workdir, flat)
  trained = _read_names(workdir) if (workdir / "classes.json").exists() else None
  if trained is not None:
    data_record.check_classes(workdir, trained, names)
  record = (data or data_record.describe({})) | {"config": _digest(flat, names)}
  if trained in (None, names):
    record, notes = data_record.compare(workdir, record, names)
    for line in notes:
      print(line, flush=True)
  processes.wait_for_all("the old config is read")
  if processes.is_first():
    version = {_VERSION: {"version": imgtx_jax.__version__, "format": FORMAT}}
    _write_json(path, version | flat, indent=1)
    if trained != names:
      _write_json(workdir / "classes.json", names, indent=0)
    if record:
      _write_json(workdir / data_record.FILE, record)
  processes.wait_for_all("the config is written")
  if not path.exists():
    raise UserError(f"{path} of the first process is not here: name a --workdir that all share")


def _plain(config):
  """Returns the config as config.json has it: {dotted key: JSON value}."""
  return json.loads(json.dumps(configs.flatten(config)))


def _digest(flat, class_names):
  """Returns the SHA-256 of what may not change once a work directory is begun: the classes, and the
  keys of a plain config that decide networks and training, where they differ from their defaults.
  """
  defaults = _plain(configs.default())
  decides = {
    key: value
    for key, value in flat.items()
    if key not in (*FREE_KEYS, *configs.PATH_KEYS, "rounds", "stages")
    and not key.startswith("sample.")
    and value != defaults.get(key)
  }
  text = json.dumps([decides, list(class_names)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _check_config(workdir, flat):
  """Raises UserError where a work directory belongs to another plain config."""
  if not (workdir / "config.json").exists():
    return
  found = _plain(configs.default()) | _read_flat(workdir)
  for key in sorted(set(flat) | set(found)):
    ours, theirs = flat.get(key, "absent"), found.get(key, "absent")
    if key in configs.PATH_KEYS and theirs and os.path.abspath(str(theirs)) == ours:
      continue  # an older version stored paths as they were given
    if ours != theirs and key not in FREE_KEYS:
      raise UserError(
        f"{workdir} belongs to another config: {key} is {theirs!r} there and {ours!r} here; "
        "use another --workdir, or set it back"
      )


def _write_json(path, values, indent=None):
  write_atomically(path, json.dumps(values, indent=indent, ensure_ascii=False).encode())


def _read_json(path, kind, remedy="copy it back from where the run was, or train anew"):
  """Returns the JSON value of a file, of the type `kind`; raises UserError where it is gone or
  damaged."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged ({first_line(error)}): {remedy}") from error
  if not isinstance(found, kind):
    raise UserError(f"{path} is damaged (it holds no {kind.__name__}): {remedy}")
  return found


def read(workdir):
  """Returns (config, class names) of a work directory.

  Raises UserError if nothing was trained there, or if config.json or classes.json is damaged, was
  changed, or belongs to a version with another format.
  """
  workdir = Path(workdir)
  path = workdir / "config.json"
  if not path.exists():
    raise UserError(
      f"{workdir} holds no config.json, so nothing was trained there; train first: "
      f"python -m imgtx_jax.main --config configs/quickstart.py --workdir {workdir}"
    )
  flat, names = _read_flat(workdir), _read_names(workdir)
  config = _parse(path, flat)
  _check_unchanged(workdir, flat, names)
  try:
    validation.check(config, devices=1)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  return config.lock(), names


def _read_flat(workdir):
  """Returns {dotted key: value} of config.json; UserError if it has another version's format."""
  path = workdir / "config.json"
  flat = _read_json(path, dict)
  written = flat.pop(_VERSION, {"version": "0.1.0", "format": 1})
  if not isinstance(written, dict) or written.keys() != {"version", "format"}:
    raise UserError(f"{path} is damaged ({_VERSION} is {written!r}): train anew")
  if written["format"] != FORMAT:
    raise UserError(
      f"{workdir} was written by imgtx_jax {written['version']}, whose configs this version, "
      f"{imgtx_jax.__version__}, does not read: use that version (git log imgtx_jax/__init__.py "
      "shows where it ends), or train anew in another --workdir"
    )
  return flat


def _read_names(workdir):
  """Returns the class names of a work directory."""
  path, remedy = workdir / "classes.json", "delete it, and the training command writes it again"
  names = _read_json(path, list, remedy)
  if not names or not all(isinstance(name, str) for name in names):
    raise UserError(f"{path} is damaged (it is no list of names): {remedy}")
  return names


def _parse(path, flat):
  """Returns the config of a plain one that was read from `path`."""
  config = configs.default()
  known = configs.flatten(config)
  if unknown := sorted(set(flat) - set(known)):
    raise UserError(
      f"{path} has {unknown[0]}, which this version of imgtx_jax does not know; use the version "
      "that trained it"
    )
  for key, value in flat.items():
    if not _fits(value, known[key]):
      raise UserError(
        f"{path} is damaged: {key} is {value!r}, and should be as {known[key]!r}; set it back"
      )
  config.update_from_flattened_dict(
    {key: tuple(v) if isinstance(v, list) else v for key, v in flat.items()}
  )
  return config


def _fits(value, like):
  """Returns whether a JSON value has the type of a config's default, as JSON has it."""
  if isinstance(like, list):
    return isinstance(value, list) and all(_fits(v, like[0] if like else "") for v in value)
  if isinstance(like, bool) or isinstance(value, bool):
    return isinstance(like, bool) and isinstance(value, bool)
  return (
    isinstance(value, int | float) if isinstance(like, float) else isinstance(value, type(like))
  )


def _check_unchanged(workdir, flat, names):
  """Raises UserError where config.json or classes.json are not what the run was begun with."""
  begun = data_record.config_digest(workdir)
  if begun and begun != _digest(flat, names):
    raise UserError(
      f"{workdir}: config.json or classes.json were changed after the run was begun, and its "
      f"weights may not fit them; set them back, or delete {workdir / data_record.FILE} to use them"
    )


def is_finished(workdir, task):
  """Returns whether a StageRun has written its summary."""
  folder = Path(workdir) / task.name
  return (folder / "summary.json").exists() and _read_summary(folder) is not None


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


def _read_summary(folder):
  """Returns a finished stage's summary; raises UserError for a damaged one."""
  path, remedy = folder / "summary.json", "delete it, and the training command makes it again"
  summary = _read_json(path, dict, remedy)
  best, wanted = summary.get("best"), {"step": 0, "metric": "", "value": 0.0}
  if best and not (
    isinstance(best, dict) and all(_fits(best.get(k), v) for k, v in wanted.items())
  ):
    raise UserError(f"{path} is damaged (its best is {best!r}): {remedy}")
  return summary


def write_summary(folder, summary):
  """Writes summary.json, which marks a stage as finished; called by all processes."""
  if processes.is_first():
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_atomically(Path(folder) / "summary.json", text.encode())
  processes.wait_for_all("the summary is written")


def results(workdir, tasks, default="last", chosen=()) -> dict[str, Any]:
  """Returns {stage: NumPy trees of its checkpoint, without optimizer state}.

  Args:
    workdir: the work directory.
    tasks: finished StageRuns; of a stage's rounds the last counts.
    default: config.stage_checkpoint: "last", or "best" where a stage has kept one.
    chosen: {stage: "last" or "best"}; takes precedence.

  Raises:
    UserError: if a chosen best was not kept.
  """
  last = {task.stage: task for task in tasks}
  return {
    stage: _result(workdir, task, dict(chosen).get(stage), default) for stage, task in last.items()
  }


def _result(workdir, task, asked, default):
  """Returns the checkpoint of one StageRun; prints which one it is where there is a choice."""
  folder = Path(workdir) / task.name
  summary = _read_summary(folder)
  best = summary.get("best")
  if asked == "best" and not best:
    raise UserError(
      f"--checkpoint=best: {task.name} of {workdir} has kept none by a figure; train with "
      "--config.best_metric=NAME, or leave the flag out for the last"
    )
  which = (asked or default) if best else "last"
  if best and best["step"] != summary.get("steps") and jax.process_index() == 0:
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
