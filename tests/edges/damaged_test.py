"""Every command over a list of damaged inputs: one line that names the file, never a traceback."""

import json
import os
import pwd
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.evaluate import feature_networks
from imgtx_jax.evaluate.feature_networks import FeatureNetwork
from imgtx_jax.style_transfer import tiled_renderer

COMMANDS = {
  "main": ("--config=config.py", "--workdir=work", "--config.data.path=data"),
  "sample": ("--workdir=work", "--num=1", "--out=out.png"),
  "judge": ("--workdir=work", "a.png"),
  "stylize": ("--workdir=work", "--content=a.png", "--style=b.jpg", "--out=out.png"),
  "evaluate": ("--workdir=work", "--num=4", "--reference=data", "--metrics=frechet"),
}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
  """Every feature network is one of projected colours."""

  def load(name):
    matrix = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)

    def apply(params, images):
      blocks = images.astype(jnp.float32)[:, :16, :16].reshape(len(images), 2, 8, 2, 8, 3) / 255
      return {"features": blocks.mean((2, 4)).reshape(len(images), -1) @ params}

    return FeatureNetwork("tiny", "FD-Tiny", "none", "ab" * 32, matrix, apply)

  monkeypatch.setattr(feature_networks, "load", load)


def text(name, data):
  def damage():
    path = Path("work", name)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())

  return damage


def cut(name, length):
  return lambda: os.truncate(Path("work", name), length)


def gone(name):
  def damage():
    path = Path("work", name)
    shutil.rmtree(path) if path.is_dir() else path.unlink()

  return damage


def changed(**values):
  def damage():
    path = Path("work", "config.json")
    flat = json.loads(path.read_text())
    flat |= {key.replace("__", "."): value for key, value in values.items()}
    path.write_text(json.dumps(flat))

  return damage


def folder(name):
  def damage():
    gone(name)()
    Path("work", name).mkdir()

  return damage


DAMAGES = {
  "classes.json": {
    "gone": gone("classes.json"),
    "empty": text("classes.json", ""),
    "no list": text("classes.json", "{}"),
    "no names": text("classes.json", "[1, 2, 3]"),
    "one more": text("classes.json", '["cat", "dog", "emu", "fox"]'),
    "none": text("classes.json", "[]"),
    "not UTF-8": text("classes.json", b'["caf\xe9"]'),
    "a folder": folder("classes.json"),
  },
  "config.json": {
    "cut": cut("config.json", 200),
    "empty": text("config.json", ""),
    "no dict": text("config.json", "[]"),
    "nested without end": text("config.json", "[" * 100_000),
    "an unknown key": changed(gpt__vanished=1),
    "another type": changed(seed="x"),
    "another width": changed(gpt__width=64),
    "a number that is none": changed(tokenizer__optimizer__learning_rate=float("nan")),
    "a free key out of range": changed(parallel__mode="both"),
    "sampling out of range": changed(sample__guidance="none"),
    "a list for a number": changed(gpt__depth=[2]),
  },
}
CASES = [(file, case) for file, cases in DAMAGES.items() for case in cases]
# What the training command mends, as it has the right values at hand.
MENDED = {("classes.json", "gone"), ("config.json", "a free key out of range")}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("file, case", CASES)
def test_a_damaged_work_directory_is_one_line(call, place, file, case, name):
  if name == "main" and (file, case) in MENDED:
    return
  DAMAGES[file][case]()
  before = {p: p.read_bytes() for p in Path("work").rglob("*") if p.is_file()}
  result = call(name, *COMMANDS[name])
  assert "work" in result.error, result.error
  assert before == {p: p.read_bytes() for p in Path("work").rglob("*") if p.is_file()}


SUMMARIES = {
  "empty": "",
  "no dict": "[]",
  "a best without a step": '{"steps": 6, "best": {"metric": "x"}}',
  "a best that is none": '{"steps": 6, "best": [1]}',
  "a best step that is no number": '{"best": {"step": "6", "metric": "x", "value": 1.0}}',
}


@pytest.mark.parametrize("name", ["sample", "judge", "stylize", "evaluate"])
@pytest.mark.parametrize("case", SUMMARIES)
def test_a_damaged_summary_is_one_line(call, place, case, name):
  for stage in ("tokenizer", "finetune", "style"):
    Path("work", f"1-{stage}", "summary.json").write_text(SUMMARIES[case])
  assert "summary.json is damaged" in call(name, *COMMANDS[name]).error


def test_training_goes_on_beside_a_damaged_summary(call, place, no_training):
  Path("work", "1-style", "summary.json").write_text("")
  result = call("main", *COMMANDS["main"])
  assert "summary.json is damaged" in result.error and "delete it" in result.error
  Path("work", "1-style", "summary.json").unlink()
  assert call("main", *COMMANDS["main"]).code == 0
  assert len(no_training) == 1 and no_training[0].endswith("1-style")


@pytest.mark.parametrize("name", ["sample", "judge", "stylize", "evaluate"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_damaged_checkpoints_are_one_line(call, place, damage, name):
  for stage in ("tokenizer", "finetune", "style"):
    checkpoints = Path("work", f"1-{stage}", "checkpoints")
    if damage == "gone":
      shutil.rmtree(checkpoints)
      continue
    for path in checkpoints.rglob("*"):
      if path.is_file() and path.stat().st_size > 100:
        os.truncate(path, 50 if damage == "cut" else 0)
  result = call(name, *COMMANDS[name])
  assert result.code == 2 and "no intact checkpoint" in result.err.splitlines()[-1]


FLAGS = {
  "no flag file": (["--flagfile"], "--flagfile"),
  "a flag file that is not there": (["--flagfile=nowhere"], "nowhere"),
  "an unknown key after one dash": (["-config.tokenizer.stps=5"], "tokenizer.steps"),
  "an unknown key after two": (["--config.tokenizer.stps=5"], "tokenizer.steps"),
  "an unknown key in a flag file": (["--flagfile=flags.txt"], "tokenizer.steps"),
  "a seed over 64 bits": (["--config.seed=18446744073709551616"], "64 bits"),
  "a seed below 0": (["--config.seed=-1"], "config.seed=-1"),
  "words in a tuple of numbers": (["--config.generator.taps=('a',)"], "generator.taps"),
  "no value": (["--config.tokenizer.steps"], "steps"),
  "too many digits": ([f"--config.tokenizer.steps={'9' * 5000}"], "tokenizer.steps"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags_are_one_line(call, place, case):
  given, words = FLAGS[case]
  Path("flags.txt").write_text("--config.tokenizer.stps=5\n")
  result = call("main", "--config=config.py", "--workdir=new", *given)
  assert words in result.error
  assert not Path("new").exists()


@pytest.mark.parametrize("name", ["sample", "evaluate"])
@pytest.mark.parametrize("seed", ["18446744073709551616", "-1", "x"])
def test_wrong_seeds_are_one_line(call, place, name, seed):
  assert f"--seed={seed}" in call(name, "--workdir=work", "--out=x.png", f"--seed={seed}").error


@pytest.mark.parametrize("flag", ["temperature", "cfg_scale", "top_p", "truncation"])
@pytest.mark.parametrize("value", ["nan", "-1", "1e999"])
def test_numbers_out_of_range_are_one_line(call, place, flag, value):
  result = call("sample", "--workdir=work", "--out=x.png", f"--{flag}={value}")
  assert f"--{flag}=" in result.error


@pytest.mark.parametrize("side", ["0", "-64"])
def test_a_style_without_a_side_is_one_line(call, place, side):
  result = call("stylize", *COMMANDS["stylize"], f"--style_size={side}")
  assert f"--style_size={side} is under 1" in result.error


CONFIGS = {
  "no Python": ("def get_config(:\n", "line 1: SyntaxError"),
  "a name that is not there": ("import defaults_of_mine\n", "line 1: ModuleNotFoundError"),
  "an exception": ("def get_config():\n  return 1 / 0\n", "line 2: ZeroDivisionError"),
  "an exit": ("def get_config():\n  raise SystemExit('so')\n", "line 2: SystemExit: so"),
  "nothing": ("def get_config():\n  pass\n", "returns NoneType"),
  "no function": ("get_config = 3\n", "defines no get_config()"),
  "an unknown key": ("", "sets log_stepss, which is no key of the config; did you mean log_steps"),
  "bytes": (b"\xff\xfe\x00", "SyntaxError"),
  "an empty file": (" ", "defines no get_config()"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_file_that_fails_is_one_line(call, place, case):
  data, words = CONFIGS[case]
  if case == "an unknown key":
    data = Path("config.py").read_text().replace("  return", "  config.log_stepss = 3\n  return")
  Path("bad.py").write_bytes(data if isinstance(data, bytes) else data.encode())
  assert words in call("main", "--config=bad.py", "--workdir=new").error


# -- Images ----------------------------------------------------------------------------------------


def rename_to_bytes(path, name):
  os.rename(path, os.path.join(os.fsencode(os.path.dirname(path)), name))


def test_names_that_are_not_utf8(call, place, no_training, monkeypatch):
  rename_to_bytes("data/dog/0.png", b"caf\xe9.png")
  rename_to_bytes("data/emu", b"\xe9mu")
  result = call(
    "main", *COMMANDS["main"][:1], "--workdir=new", "--config.data.path=data", "--stage=tokenizer"
  )
  assert result.code == 0, result.err
  assert r"\xe9mu" in result.out
  assert json.loads(Path("new", "classes.json").read_text()) == ["cat", "dog", r"\xe9mu"]
  result = call("evaluate", "--samples=data", "--reference=data", "--out=o", "--metrics=frechet")
  assert result.code == 0, result.err


def render_nothing(renderer, pending, options):
  for content, style in pending:
    yield content, style, content.picture


@pytest.fixture
def no_rendering(monkeypatch):
  """Outputs of stylize are their contents."""
  from imgtx_jax.style_transfer import batch_jobs

  monkeypatch.setattr(batch_jobs, "_flush", render_nothing)
  monkeypatch.setattr(tiled_renderer.StyleRenderer, "encode", lambda self, image, size: None)
  monkeypatch.setattr(tiled_renderer.StyleRenderer, "at_strength", lambda self, style: None)


def test_folders_with_damaged_images(call, place, no_rendering):
  rename_to_bytes("data/dog/0.png", b"caf\xe9.png")
  Path("data/dog/broken.png").symlink_to("nowhere.png")
  Path("data/dog/empty.png").touch()
  stylize = ("stylize", "--workdir=work", "--content=data/dog", "--style=b.jpg", "--style_size=64")
  result = call(*stylize, "--out=styled")
  assert result.code == 1, result.err
  assert (
    "2 files failed:" in result.err and "broken.png" in result.err and "empty.png" in result.err
  )
  assert len(list(Path("styled").iterdir())) == 4
  evaluate = ("evaluate", "--samples=data", "--reference=data", "--metrics=frechet")
  result = call(*evaluate, "--out=o")
  assert result.code == 0, result.err
  assert json.loads(Path("o/evaluation.json").read_text())["protocol"]["samples"]["unreadable"] == 2


def test_without_home_folder_and_user(call, place, monkeypatch):
  def nobody(_):
    raise KeyError("no such user")

  monkeypatch.delenv("HOME", raising=False)
  monkeypatch.delenv("IMGTX_CACHE", raising=False)
  monkeypatch.setattr(pwd, "getpwuid", nobody)
  result = call("evaluate", "--samples=data", "--reference=data", "--out=o", "--metrics=frechet")
  assert result.code == 0, result.err
  assert Path("o", "references").is_dir()
