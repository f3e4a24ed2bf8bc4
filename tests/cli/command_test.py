"""Every command: its help fits one screen, what is wrong with its flags is one line, and so it is
when a user starts it as a process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from imgtx_jax.cli import command
from imgtx_jax.errors import UserError

ROOT = Path(__file__).parents[2]
MODULES = {
  path.parent.name if path.stem == "__main__" else path.stem: ".".join(
    path.relative_to(ROOT).with_suffix("").parts
  )
  for pattern in ("*.py", "*/__main__.py")
  for path in (ROOT / "imgtx_jax").glob(pattern)
  if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}
COMMANDS = sorted(MODULES)
LINES, COLUMNS = 50, 100


def load(name):
  """(the Command or {kind: Command} of a module, the module's docstring)."""
  module = importlib.import_module(MODULES[name])
  return getattr(module, "COMMAND", None) or module.COMMANDS, module.__doc__


def kinds(loaded):
  return loaded if isinstance(loaded, dict) else {"": loaded}


def test_the_commands_are_found():
  assert {"main", "sample", "evaluate", "convert", "benchmark"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(name):
  loaded, doc = load(name)
  for kind, each in kinds(loaded).items():
    for words in ([], [kind]):
      text = command.help_asked(loaded, [name, *words, "--help"], doc)
      lines = text.splitlines()
      assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS
      assert lines[0] == doc.splitlines()[0] or kind and lines[0].startswith(f"{name} {kind}")
      assert f"python -m imgtx_jax.{name} " in text
      _, groups = command.make_flags(each)
      listed = {word.partition("=")[0] for word in text.split()}
      assert {f"--{flag}" for flag in groups.names} <= listed
  assert command.help_asked(loaded, [name]) == ""
  assert len(command.help_asked(loaded, [name, "--helpfull"], doc).splitlines()) > LINES


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_flags_in_process(name):
  loaded, _ = load(name)
  for kind, each in kinds(loaded).items():
    argv = [name, kind] if kind else [name]
    with pytest.raises(flags.Error, match="no_such_flag"):
      command.parse(loaded, [*argv, "--no_such_flag=1"])
    if each.required:
      with pytest.raises(UserError, match=f"--{each.required[0]} is missing"):
        command.parse(loaded, [*argv, *(["file"] if each.accepts else [])])
    if each.accepts:
      with pytest.raises(UserError, match=f"no {each.accepts} given"):
        command.parse(loaded, argv)
    else:
      with pytest.raises(UserError, match="unexpected argument 'file'"):
        command.parse(loaded, [*argv, "file"])


def test_least_values():
  sample, _ = load("sample")
  with pytest.raises(UserError, match="--num=0 is under 1; ask for 1 or more"):
    command.parse(sample, ["sample", "--workdir=w", "--num=0"])
  values = command.parse(sample, ["sample", "--workdir=w", "--num=3"]).flags
  assert values.num == 3 and values.seed == 0 and values["num"].present


def test_largest_values():
  sample, _ = load("sample")
  with pytest.raises(flags.Error, match="--num=1000000000000: .*<= 2147483647"):
    command.parse(sample, ["sample", "--workdir=w", "--num=1000000000000"])


FAULTS = {
  "memory": (MemoryError(), "out of memory (MemoryError): ask for less"),
  "the device's memory": (
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
    "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): ask for less",
  ),
  "a backend": (
    RuntimeError("Unable to initialize backend 'cuda': not there (you may need to uninstall)"),
    "'cuda': not there (you may need to uninstall); set JAX_PLATFORMS",
  ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_the_machine_lacks_is_one_line(case, capsys):
  fault, words = FAULTS[case]

  def main(values):
    raise fault

  given = command.Command(main, lambda values: None, "Does nothing.\n\n  nothing")
  with pytest.raises(SystemExit) as left:
    command._guarded(command.Parsed(given, None, []))
  lines = capsys.readouterr().err.splitlines()
  assert left.value.code == 2 and len(lines) == 1 and words in lines[0]


def test_a_kind_stands_first():
  convert, _ = load("convert")
  for argv in ([], ["--gpt=a"]):
    with pytest.raises(UserError, match="first argument must be one of: llamagen, inception"):
      command.parse(convert, ["convert", *argv])
  with pytest.raises(UserError, match="'nothing' is not one of: llamagen"):
    command.parse(convert, ["convert", "nothing"])
  parsed = command.parse(convert, ["convert", "inception", "a.pth", "--out=b"])
  assert parsed.arguments == ["a.pth"] and parsed.flags.out == os.path.abspath("b")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_one_line(name, tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", f"imgtx_jax.{name}", "--no_such_flag=1"],
    cwd=tmp_path,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 2, done.stderr
  assert "no_such_flag" in done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and done.stdout == ""
