"""Every command, started as a user starts it: its flags exist, and a wrong one is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
  path.parent.name if path.stem == "__main__" else path.stem
  for pattern in ("*.py", "*/__main__.py")
  for path in (ROOT / "imgtx_jax").glob(pattern)
  if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def test_the_commands_are_found():
  assert {"main", "sample", "evaluate", "convert", "benchmark"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_one_line(name, tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", f"imgtx_jax.{name}", "--no_such_flag=1"],
    cwd=tmp_path,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 2, done.stderr
  assert "no_such_flag" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
