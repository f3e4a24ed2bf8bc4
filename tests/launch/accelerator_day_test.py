"""An accelerator's day: what it would run, how pieces resume and fail, what is written of it; and,
slow, a day in small on the CPU."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types
import zipfile

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def scripts():
  """The modules of launch/accelerator_day: run, pieces, data and results."""
  path = list(sys.path)
  sys.path.insert(0, str(LAUNCH / "accelerator_day"))
  names = ("run", "pieces", "data", "results")
  yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})
  sys.path[:] = path
  for name in names:
    del sys.modules[name]


def shell(*arguments, **environment):
  return subprocess.run(
    ["bash", LAUNCH / "accelerator_day.sh", *map(str, arguments)],
    env=os.environ | {"PYTHON": sys.executable} | environment,
    capture_output=True,
    text=True,
  )


def test_the_dry_run_shows_commands_that_exist(scripts, tmp_path):
  done = shell(f"--out={tmp_path / 'out'}", "--data=nowhere", "--dry_run")
  assert (done.returncode, done.stderr) == (0, "") and not (tmp_path / "out").exists()
  names = re.findall(r"^# (\S+)", done.stdout, re.MULTILINE)
  assert names[:2] == ["environment", "parity"] and len(names) == len(set(names)) > 30
  assert names.index("training-pretrain-l") < names.index("emoji") < names.index("tiny_imagenet")
  from imgtx_jax.cli import command

  parsed = []  # those with the same flags are parsed once: each reads a config file
  for line in done.stdout.splitlines():
    words = line.split()
    kind = {word.partition("=")[0] for word in words[2:]}
    if words[1] == "-m" and kind not in parsed:
      parsed.append(kind)
      name = words[2]
      try:
        module = importlib.import_module(f"{name}.__main__")
      except ImportError:
        module = importlib.import_module(name)
      command.parse(getattr(module, "COMMAND", None) or module.COMMANDS, ["x", *words[3:]])


def test_what_is_wrong_with_the_flags_is_one_line(tmp_path):
  done = shell(f"--out={tmp_path}", "--only=nonsense", "--dry_run")
  assert done.returncode == 2 and done.stderr == (
    "--only=nonsense is no piece; --dry_run lists them\n"
  )
  (tmp_path / "wheels").mkdir()
  done = shell(f"--out={tmp_path}", f"--wheels={tmp_path / 'wheels'}", "--tiny")
  assert done.returncode == 2 and "has no wheel" in done.stderr


# -- Pieces ----------------------------------------------------------------------------------------

SAVES = """
import pathlib, signal, sys, time
at = pathlib.Path(sys.argv[1])
def stop(*_):
  at.write_text(str(int(at.read_text()) + 1)); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if at.exists() and at.read_text() == "1":
  print('{"resumed": true}'); sys.exit(0)
at.write_text("0"); time.sleep(60)
"""


@pytest.fixture
def day(scripts, tmp_path, monkeypatch):
  """make([Piece]) → run() → the status, in tmp_path."""
  monkeypatch.setattr(scripts.run, "LEAST", 0.1)
  (tmp_path / "logs").mkdir()
  found = scripts.pieces.Day(tmp_path, tmp_path / "scratch", tmp_path, 1.0, True)

  def make(made):
    monkeypatch.setattr(scripts.pieces, "pieces", lambda day: made)
    return lambda seconds=60: scripts.run.run(found, [], time.monotonic() + seconds)

  return make


def python(text, *arguments):
  return [sys.executable, "-c", text, *map(str, arguments)]


def read(folder, name):
  return json.loads((folder / f"{name}.json").read_text())


def test_pieces_run_once_and_failures_end_nothing(scripts, day, tmp_path, capsys):
  Piece = scripts.pieces.Piece
  fails = python("import sys; print('out of memory'); sys.exit(1)")
  run = day(
    [
      Piece("bad", [fails, fails]),
      Piece("after_bad", [python("")], needs=("bad",)),
      Piece("last", [python("")], needs=("after_bad",)),
      Piece("good", [fails, python("print('{\"a\": 1}'); print('{'); print('text')")]),
    ]
  )
  assert run() == 0
  assert "1 failed, 2 left out, 1 done" in capsys.readouterr().out
  assert read(tmp_path, "good")["results"] == [{"a": 1}]
  failed = read(tmp_path, "bad.failed")
  assert failed["status"] == 1 and failed["tail"][-1] == "out of memory"
  (tmp_path / "good.json").write_text('"as it was"')
  assert run() == 0 and read(tmp_path, "good") == "as it was"


def test_a_training_is_stopped_and_goes_on(scripts, day, tmp_path):
  way = python(SAVES, tmp_path / "saved")
  run = day([scripts.pieces.Piece("training", [way], training=True, seconds=100)])
  assert run(seconds=1.5) == scripts.run.LEFT
  assert read(tmp_path, "training.progress")["seconds"] > 1 and (tmp_path / "saved").exists()
  assert run() == 0 and read(tmp_path, "training")["results"] == [{"resumed": True}]
  (tmp_path / "training.json").unlink()
  (tmp_path / "saved").write_text("5")
  # With its share used up it is not begun a third time.
  run = day([scripts.pieces.Piece("training", [way], training=True, seconds=1)])
  assert run(seconds=3) == 0 and read(tmp_path, "training.failed")["status"] == 143


def test_steps_fit_into_the_share_and_stay(scripts, tmp_path):
  small = scripts.pieces.Day(tmp_path, tmp_path, tmp_path, 1.0, False)
  emoji = scripts.pieces.trainings(small)[0]
  assert scripts.pieces.steps_flags(small, emoji) == []
  seconds = {"tokenizer": 0.1, "pretrain": 0.0001, "finetune": 100.0}
  results = [{"stage": stage, "step_seconds": s} for stage, s in seconds.items()]
  (tmp_path / "emoji-rate.json").write_text(json.dumps({"results": results}))
  flags = scripts.pieces.steps_flags(small, emoji)
  # Of an hour .15 are the emoji's, .3 of that the tokenizer's, .8 of those its steps.
  assert flags[0] == "--config.tokenizer.steps=1200"
  assert flags[1:] == ["--config.pretrain.steps=8000", "--config.finetune.steps=4"]
  (tmp_path / "emoji-rate.json").write_text(json.dumps({"results": []}))
  assert scripts.pieces.steps_flags(small, emoji) == flags


@pytest.mark.slow
def test_wheels_are_installed_where_they_are_in_nobodys_way(scripts, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", "")
  with zipfile.ZipFile(tmp_path / "made_up-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("made_up.py", "value = 1")
    info = "made_up-1.0.dist-info"
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: made_up\nVersion: 1.0\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any")
    wheel.writestr(f"{info}/RECORD", "")
  for _ in range(2):
    assert scripts.run.install(tmp_path, tmp_path / "scratch") == 0
  assert (tmp_path / "scratch" / "packages" / "made_up.py").exists()
  assert os.environ["PYTHONPATH"].startswith(str(tmp_path / "scratch" / "packages"))


def test_data_are_unpacked_once(scripts, tmp_path):
  import cv2
  import numpy as np

  data, scratch = tmp_path / "data", tmp_path / "scratch"
  (data / "monet_photo" / "photo").mkdir(parents=True)
  for i in range(9):
    cv2.imwrite(str(data / "monet_photo" / "photo" / f"{i}.jpg"), np.zeros((8, 8, 3), np.uint8))
  (data / "styles").mkdir()
  columns = dict(x=np.zeros((3, 8, 8, 3), np.uint8), y=np.uint8([0, 1, 0]))
  names = ["four", "hash", "nobody"]  # "four" is held out in the package
  np.savez(data / "emoji_noto64.npz", name=names, classes=["A/B", "Component"], **columns)
  for _ in range(2):
    assert scripts.data.main(data, scratch) == {"emoji64": 2, "photos": 9}
  assert sorted(str(p.relative_to(scratch)) for p in scripts.data.images(scratch / "emoji64")) == [
    "emoji64/train/A-B/0002.png",
    "emoji64/val/A-B/0000.png",
  ]
  assert len(list((scratch / "photos_shown").iterdir())) == 6


# -- What is written of it -------------------------------------------------------------------------


def test_the_section_of_results(scripts, tmp_path):
  def write(name, *results):
    (tmp_path / f"{name}.json").write_text(json.dumps({"results": results}))

  write("environment", dict(devices=1, device_kind="NVIDIA H100 80GB HBM3", jax="0", python="3"))
  kernels = {"xla": {"logits": 0.0, "codes": 1.0}, "cudnn": {"error": "not here"}}
  differs = {"loss": 0.01, "worst": "psnr", "difference": 0.02}
  stages = {"pretrain": {"float32": differs, "bfloat16": differs}, "style": {"error": "no VGG16"}}
  write("parity", dict(stages=stages, kernels=kernels))
  step = dict(batch_size=256, step_seconds=0.5, images_per_second=512.0, devices=1)
  step |= dict(flops_per_step=0.5 * 989e12 / 2, model_flops_utilisation=0.6)
  step |= dict(peak_memory_bytes=2**30, largest_costs=[{"name": "gemm", "fraction": 0.5}])
  write("training-pretrain-l", step)
  write("decoding-l-8", dict(batch_size=8, images_per_second=9, ms_per_code=1, fraction_of_floor=1))
  failed = {"status": 1, "tail": ["", "a | b"]}
  (tmp_path / "training-pretrain-xl.failed.json").write_text(json.dumps(failed))
  (tmp_path / "emoji" / "1-pretrain").mkdir(parents=True)
  summary = dict(steps=9, seconds=60, images_per_second=7, figures={"validation/psnr": 20.0})
  (tmp_path / "emoji" / "1-pretrain" / "summary.json").write_text(json.dumps(summary))
  lines = scripts.results.section(tmp_path)
  for row in (
    "| pretrain | 1 % | 1 % | psnr: 2 % |",
    "| style | no VGG16 |  |  |",
    "| quickstart | xla | 0 % | 100.0% |",
    "| pretrain-l | 256 | 2 | 512 | 494 | 0.50 | 0.60 | 1.0 | gemm 50% |",
    "| L | 8 | 9 | 1 | 1.00 |",
    "| emoji | 1-pretrain | 9 | 1 | 7 | psnr 20 |",
    "| training-pretrain-xl | 1 | a / b |",
  ):
    assert row in lines
  page = "# Results\n\n- [First](#first)\n\n## First\n\ntext\n"
  once = scripts.results.into_page(page, lines)
  assert "- [First](#first)\n- [An accelerator's day](#an-accelerators-day)\n" in once
  assert scripts.results.into_page(once, lines) == once
  later = scripts.results.into_page(
    once + "\n## Last\n\nmore\n", ["## An accelerator's day", "", "x"]
  )
  assert later.endswith("## An accelerator's day\n\nx\n\n## Last\n\nmore\n")


def test_peaks(scripts):
  peaks = {"NVIDIA A100-SXM4-80GB": 312e12, "TPU v5 lite": 197e12, "TPU v6 lite": 918e12}
  peaks |= {"TPU v5": 459e12, "TPU v4": 275e12, "cpu": None}
  assert {kind: scripts.results.peak_flops(kind) for kind in peaks} == peaks


@pytest.mark.slow
def test_a_day_in_small(tmp_path):
  """Every kind of piece, the first go of half a minute; nothing fails but what needs weights."""
  status, seconds = 3, 30
  for _ in range(40):
    flags = (f"--out={tmp_path}", "--data=nowhere", "--tiny", f"--seconds={seconds}")
    done = shell(*flags, JAX_PLATFORMS="cpu", XLA_FLAGS="")
    status, seconds = done.returncode, 540
    if status != 3:
      break
  assert status == 0, done.stdout + done.stderr
  failed = {path.name.split(".")[0] for path in tmp_path.glob("*.failed.json")}
  assert failed <= {"emoji-dial"}  # VGG16's weights are an extra
  assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
  command = [sys.executable, LAUNCH / "accelerator_day" / "results.py", tmp_path]
  text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  for title in ("First steps against", "Training steps", "Decoding", "Trainings"):
    assert f"### {title}" in text
