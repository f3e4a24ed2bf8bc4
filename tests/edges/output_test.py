"""What is printed never stops the work; a closed terminal stops it as SIGTERM does; outputs are
checked before the work and never mix with those of other runs."""

import io
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtx_jax import stylize
from imgtx_jax.cli import output
from imgtx_jax.cli.progress import Display
from imgtx_jax.cli.stop_signals import StopSignals
from imgtx_jax.errors import UserError
from imgtx_jax.io import outputs
from imgtx_jax.sampling.sampler import Sampler


def closed_pipe():
  """A text stream into a pipe that nobody reads."""
  read, write = os.pipe()
  os.close(read)
  return open(write, "w", encoding="utf-8")


class FullDisk(io.StringIO):
  """A stream whose disk has no space left."""

  def write(self, text):
    raise OSError(28, "No space left on device")

  def flush(self):
    raise OSError(28, "No space left on device")


class GoneTerminal(io.StringIO):
  def write(self, text):
    raise OSError(5, "Input/output error")

  def fileno(self):
    return os.open(os.devnull, os.O_WRONLY)


def closed_file():
  stream = io.StringIO()
  stream.close()
  return stream


@pytest.mark.parametrize("make", [closed_pipe, FullDisk, GoneTerminal, closed_file, lambda: None])
def test_printing_never_fails(make, monkeypatch):
  for name in ("stdout", "stderr"):
    monkeypatch.setattr(sys, name, make())
  output.protect()
  with Display("1-tokenizer", 100, 0) as display:
    for step in range(100):
      display.update(step, 1.0, 1.0, {"train/loss": 0.5})
      display.line("x" * 1000)
      print("to both", file=sys.stderr, flush=True)
  sys.stdout.writelines(["a", "b"])
  sys.stdout.flush()
  for stream in (sys.stdout, sys.stderr):
    stream.close()


def test_what_a_locale_lacks_is_written_in_ascii(monkeypatch):
  data = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
  output.protect()
  print("0 … 1, caf\udce9", flush=True)
  assert data.getvalue() == b"0 \\u2026 1, caf\\udce9\n"


def test_protecting_twice_is_once():
  stream = output.LastingStream(io.StringIO())
  assert stream.write("abc") == 3 and stream.getvalue() == "abc"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted(number, request):
  before = signal.getsignal(number)
  if before == signal.SIG_IGN:  # the tests were started by nohup
    request.addfinalizer(lambda: signal.signal(number, signal.SIG_IGN))
    before = signal.SIG_DFL
    signal.signal(number, before)
  with StopSignals() as stop:
    os.kill(os.getpid(), number)
    assert stop.agreed() == number
    if number == signal.SIGHUP:  # the shell sends it too
      os.kill(os.getpid(), number)
  assert signal.getsignal(number) == before


def test_an_ignored_hangup_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with StopSignals() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop.agreed() is None
  finally:
    signal.signal(signal.SIGHUP, before)


# -- Outputs before the work -----------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
  """Images are drawn at once: grey ones."""

  def draw(self, labels, index=None, given=None):
    return np.full((len(labels), 16, 16, 3), 128, np.uint8), np.zeros((len(labels), 16), np.int32)

  monkeypatch.setattr(Sampler, "draw", draw)


def refuse_work(*_, **__):
  raise AssertionError("the work began")


BAD_OUTPUTS = {
  "a folder": ("sample", "--out=data", "--out="),
  "a suffix": ("sample", "--out=x.jpg", "must end in .png"),
  "below a file": ("sample", "--save_codes=a.png/codes.npy", "a.png is a file, not a folder"),
  "images below a file": ("sample", "--save_images=a.png/x", "a.png is a file, not a folder"),
  "a long name": ("sample", f"--out={'x' * 251}.png", "its name has over"),
  "evaluation below a file": ("evaluate", "--out=a.png", "a.png is a file, not a folder"),
  "samples": ("evaluate", "--save_npz=samples.zip", "must end in .npz"),
  "statistics": ("evaluate", "--save_stats=data", "must end in .npz"),
  "a picture": ("judge", "--out=x.webp", "must end in .png"),
  "the work directory": ("main", "--workdir=a.png", "a.png is a file, not a folder"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_outputs_are_checked_before_the_work(call, place, monkeypatch, case):
  name, flag, words = BAD_OUTPUTS[case]
  monkeypatch.setattr(Sampler, "draw", refuse_work)
  others = {"main": ["--config=config.py"], "judge": ["a.png", "--workdir=work"]}
  result = call(name, *others.get(name, ["--workdir=work"]), flag)
  assert words in result.error


def test_samples_never_mix_with_those_of_another_run(call, place, drawn):
  sample = ("sample", "--workdir=work", "--num=3", "--save_images=single")
  for _ in range(2):  # the same again replaces all
    assert call(*sample, "--labels=cat").code == 0
  names = sorted(path.name for path in Path("single").iterdir())
  assert names == [f"00000{i}-cat.png" for i in range(3)]
  assert "3 images that this run would not replace, such as 000000-cat.png" in (
    call(*sample, "--labels=dog").error
  )
  assert "1 images that this run would not" in call(*sample, "--labels=cat", "--num=2").error
  assert sorted(path.name for path in Path("single").iterdir()) == names
  assert call(*sample, "--labels=cat", "--num=5").code == 0


def test_an_alpha_channel_that_cannot_be_kept_is_refused_before_the_work(call, place, monkeypatch):
  monkeypatch.setattr(stylize, "load_stylizer", refuse_work)
  Image.new("RGBA", (32, 32), (9, 9, 9, 99)).save("alpha.png")
  Image.new("P", (32, 32)).save("index.gif", transparency=0)
  arguments = ("stylize", "--workdir=work", "--style=b.jpg", "--out=x.jpg")
  for content in ("alpha.png", "index.gif"):
    result = call(*arguments, f"--content={content}")
    assert "x.jpg cannot keep the content's alpha channel" in result.error


def test_other_images_in_a_folder(tmp_path):
  for name in ("a.png", "b.TIF", "c.txt", ".d.png"):
    (tmp_path / name).touch()
  assert outputs.other_images(tmp_path, ["a.png"]) == ["b.TIF"]
  assert outputs.other_images(tmp_path / "none", []) == []
  with pytest.raises(UserError, match="is a folder"):
    outputs.check_file("--out", tmp_path)
