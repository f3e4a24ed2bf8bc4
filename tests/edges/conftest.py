"""Commands as users start them, in this process; a small work directory of every stage."""

import importlib
import io
import shutil
import sys
import traceback
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from absl import flags
from absl import logging as absl_logging
from PIL import Image

from imgtx_jax.cli import command, output
from imgtx_jax.errors import UserError
from imgtx_jax.reporting import report
from imgtx_jax.training import loop, workdir

NAMES = ("cat", "dog", "emu")
CONFIG = """
import json

from imgtx_jax.config import defaults


def get_config():
  config = defaults.default()
  flat = json.loads(FLAT)
  flat.pop("imgtx_jax")
  flat = {key: tuple(v) if isinstance(v, list) else v for key, v in flat.items()}
  config.update_from_flattened_dict(flat)
  return config.lock()
"""


class Result(NamedTuple):
  """What a command left: its exit code ("traceback" for an exception), what it printed."""

  code: int | str
  out: str
  err: str

  @property
  def error(self):
    """The one line on stderr of a command that was refused."""
    lines = [line for line in self.err.splitlines() if line.strip()]
    assert self.code == 2, (self.code, self.out[-500:], self.err[-3000:])
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def run_command(name, *arguments):
  """Result of `python -m imgtx_jax.NAME ARGUMENTS`, in this process."""
  module = importlib.import_module(f"imgtx_jax.{name}")
  if not hasattr(module, "COMMAND"):
    module = importlib.import_module(f"imgtx_jax.{name}.__main__")
  target = getattr(module, "COMMANDS", None) or module.COMMAND
  out, err, code = io.StringIO(), io.StringIO(), 0
  handler = absl_logging.get_absl_handler().python_handler
  saved = sys.stdout, sys.stderr, handler.stream
  sys.stdout, sys.stderr, handler.stream = out, err, err
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      output.protect()
      run_as_command(target, [f"imgtx_jax/{name}.py", *map(str, arguments)])
  except SystemExit as stop:
    code = stop.code or 0
  except Exception:
    code = "traceback"
    traceback.print_exc(file=err)
  finally:
    sys.stdout, sys.stderr, handler.stream = saved
  if "Traceback (most recent call last)" in err.getvalue() + out.getvalue():
    code = "traceback"
  return Result(code, out.getvalue(), err.getvalue())


def run_as_command(target, argv):
  """command.run without what it sets for a whole process."""
  try:
    parsed = command.parse(target, argv)
  except (UserError, flags.Error) as error:
    command._leave(f"error: {error}", 2)
  command._guarded(parsed)


@pytest.fixture
def call():
  """The function run_command."""
  return run_command


@pytest.fixture(scope="session")
def made(tmp_path_factory, fresh_tiny_config, untrained_workdir, use_random_vgg):
  """A work directory in which all stages have finished with their first, random weights, and the
  data of three classes that it names."""
  root = tmp_path_factory.mktemp("made")
  for number, name in enumerate(NAMES):
    for i in range(4):
      path = root / "data" / name / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.full((20, 24, 3), 60 * number + i, np.uint8)).save(path)
  config = fresh_tiny_config()
  config.stages = ("tokenizer", "pretrain", "finetune", "style")
  config.data.update(dict(source="folder", path=str(root / "data"), threads=0))
  config.style.data.path = str(root / "data" / "cat")
  config.gpt.order = "raster"
  with pytest.MonkeyPatch.context() as patch:
    use_random_vgg(patch)  # the first state of the style stage holds VGG16
    untrained_workdir(config.lock(), root / "work", NAMES)
  text = CONFIG.replace("FLAT", repr((root / "work" / "config.json").read_text()))
  (root / "config.py").write_text(text)
  return root


@pytest.fixture
def no_training(monkeypatch):
  """The stages of main finish at once; a list of the folders that they would train in."""
  folders = []

  class Finished:
    parameters = ""

    def __init__(self, stage, *, directory, **_):
      self.directory = directory

    def run(self):
      folders.append(self.directory)
      workdir.write_summary(self.directory, {"steps": 6, "figures": {}})

  monkeypatch.setattr(loop, "Trainer", Finished)
  monkeypatch.setattr(report, "write", lambda directory: None)
  return folders


@pytest.fixture
def place(made, tmp_path, monkeypatch):
  """A copy of `made` to work in and to damage, the current folder: work,
  data, a.png, b.jpg, config.py."""
  for name in ("work", "data"):
    shutil.copytree(made / name, tmp_path / name)
  shutil.copy(made / "config.py", tmp_path)
  draw = np.random.default_rng(0)
  for name in ("a.png", "b.jpg"):
    Image.fromarray(draw.integers(0, 255, (24, 20, 3), np.uint8)).save(tmp_path / name)
  monkeypatch.chdir(tmp_path)
  return tmp_path
