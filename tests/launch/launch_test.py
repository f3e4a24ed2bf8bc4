import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


def run(script, *arguments, cwd, **environment):
  kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "WORKDIR")}
  return subprocess.run(
    ["bash", LAUNCH / script, *arguments],
    cwd=cwd,
    env=kept | {name: str(value) for name, value in environment.items()},
    capture_output=True,
    text=True,
  )


def make_interpreter(path, version="3.12", install_status=0):
  """A Python of that version which only writes down what it is called with."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    "#!/usr/bin/env bash\n"
    f'if [[ "$1" == -c ]]; then echo {version}; exit; fi\n'
    f'echo "$*" >>"{path}.calls"\n'
    f'if [[ "$*" == *"pip install"* ]]; then exit {install_status}; fi\n'
  )
  path.chmod(0o755)
  return path


def calls(path):
  """What was asked of it since the last look, without the questions for pip's version."""
  log = pathlib.Path(f"{path}.calls")
  lines = log.read_text().splitlines()
  log.unlink()
  return [line for line in lines if line != "-m pip --version"]


def test_quickstart_installs_once_and_runs_from_anywhere(tmp_path):
  python = make_interpreter(tmp_path / "a venv" / "bin" / "python")
  for first in (True, False):
    done = run("quickstart.sh", "--stage", "x y", cwd=tmp_path, VENV="a venv", WORKDIR="work")
    assert (done.returncode, done.stderr) == (0, "")
    made = calls(python)
    config = LAUNCH.parent / "configs" / "quickstart.py"
    main = f"-m imgtx_jax.main --config {config} --workdir work --stage x y"
    assert made[-1] == main
    assert [line.startswith("-m pip install") for line in made] == [True, False][1 - first :]


def test_quickstart_ends_by_naming_the_report(tmp_path):
  make_interpreter(tmp_path / "venv" / "bin" / "python")
  (tmp_path / "work").mkdir()
  (tmp_path / "work" / "report.html").write_text("")
  done = run("quickstart.sh", cwd=tmp_path, VENV="venv", WORKDIR="work")
  assert done.stdout.splitlines()[-1] == "The report: work/report.html"


def test_tests_need_their_extra_and_quickstart_needs_no_more(tmp_path):
  python = make_interpreter(tmp_path / "venv" / "bin" / "python")
  assert run("quickstart.sh", cwd=tmp_path, VENV="venv").returncode == 0
  calls(python)
  assert run("test.sh", "-k", "grid", cwd=tmp_path, VENV="venv").returncode == 0
  install, test = calls(python)
  assert install.endswith("[test]") and test.startswith("-m pytest") and test.endswith("-k grid")
  (tmp_path / "venv" / "imgtx_jax.installed").write_text("of another setup.py")
  assert run("test.sh", cwd=tmp_path, VENV="venv").returncode == 0
  assert len(calls(python)) == 1


def test_a_failed_installation_is_one_line_and_is_tried_again(tmp_path):
  python = make_interpreter(tmp_path / "venv" / "bin" / "python", install_status=1)
  for _ in range(2):
    done = run("quickstart.sh", cwd=tmp_path, VENV="venv")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "pip could not install" in done.stderr
    assert len(calls(python)) == 1


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10"])
def test_old_python_is_one_line(tmp_path, version):
  old = make_interpreter(tmp_path / "python", version)
  done = run("quickstart.sh", cwd=tmp_path, PYTHON=old, VENV="venv")
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.count("\n") == 1
  assert f"is Python {version}, 3.11 or newer is needed" in done.stderr


def test_absent_python_and_another_version_are_one_line_each(tmp_path):
  done = run("test.sh", cwd=tmp_path, PYTHON="no-such-python", VENV="venv")
  assert done.returncode == 2 and done.stderr.startswith("no no-such-python here: ")
  make_interpreter(tmp_path / "venv" / "bin" / "python", "3.11")
  other = make_interpreter(tmp_path / "python", "3.12")
  done = run("test.sh", cwd=tmp_path, PYTHON=other, VENV="venv")
  assert done.returncode == 2 and "has Python 3.11" in done.stderr
  assert done.stderr.count("\n") == 1


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
  (tmp_path / "venv").mkdir()
  (tmp_path / "venv" / "thesis.txt").write_text("years of work")
  python = make_interpreter(tmp_path / "python")
  done = run("quickstart.sh", cwd=tmp_path, PYTHON=python, VENV="venv")
  assert done.returncode == 2 and "no virtual environment" in done.stderr
  assert (tmp_path / "venv" / "thesis.txt").exists()
