"""Several real processes: the same numbers as one, faults, resuming, samples."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError

HERE = pathlib.Path(__file__).parents[1]


def launch(logs, *command, count=2, **environment):
  """Runs a Python command in several processes; (status, [the log of each])."""
  environment = os.environ | {
    "XLA_FLAGS": "",
    "PYTHONPATH": str(HERE.parent),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "LOGS": str(logs),
    **environment,
  }
  script = HERE.parent / "launch" / "local_processes.sh"
  command = ["bash", script, count, sys.executable, *command]
  done = subprocess.run([str(word) for word in command], env=environment, capture_output=True)
  return done.returncode, [(logs / f"process-{i}.log").read_text() for i in range(count)]


def load_module(name):
  spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# -- Who is in a cluster ---------------------------------------------------------------------------


def slurm(tasks):
  return {f"SLURM_{name}": "0" for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID")} | {
    "SLURM_NTASKS": str(tasks)
  }


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, False),
    (slurm(2), True),
    (slurm(1), False),
    ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, False),  # a batch script's own shell
    ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
  ],
)
def test_a_cluster_is_known_by_its_environment(environment, expected):
  assert processes.in_cluster(environment) is expected


def test_pod_workers_are_known_by_their_names(monkeypatch):
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu")
  assert processes.in_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
  assert not processes.in_cluster({"TPU_WORKER_HOSTNAMES": "localhost"})
  assert not processes.in_cluster({"TPU_SKIP_MDS_QUERY": "1"})


@pytest.mark.parametrize(
  ("given", "words"),
  [
    (("localhost:1", 2, None), "--process_id is missing: give all of --coordinator_address"),
    (("localhost:1", 2, 2), "--process_id=2 is outside 0 … 1"),
  ],
)
def test_half_an_address_is_refused(given, words):
  with pytest.raises(UserError, match=words):
    processes.start(*given)


# -- Two processes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  """(folder, status, logs) of process_steps.py by two processes."""
  out = tmp_path_factory.mktemp("two")
  runs = os.environ.get("PROCESS_RUNS", "jit:2:tokenizer,pmap:1:pretrain")
  command = (HERE / "process_steps.py", f"--out={out}", f"--runs={runs}")
  return out, *launch(out / "logs", *command)


@pytest.fixture(scope="module")
def alone():
  """Run of process_steps.py in this process, on one device."""
  run = load_module("process_steps").Run("jit", 1, devices=jax.devices()[:1])
  run.whole = functools.cache(run.train)
  return run


def assert_close(found, expected, where):
  scale = max(1.0, float(np.abs(expected).max(initial=0)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale, err_msg=where)


@pytest.mark.slow
def test_their_steps_are_those_of_one_process(together, alone):
  """Metrics of five steps and parameters. PROCESS_RUNS chooses stages and modes: all of them take
  minutes."""
  out, _, logs = together
  files = sorted(out.glob("*.npz"))
  assert files, logs
  for file in files:
    with np.load(file) as found:
      for name in sorted({key.split("/")[0] for key in found}):
        expected = alone.whole(name)
        assert expected.keys() == {key for key in found if key.split("/")[0] == name}
        for key, value in expected.items():
          assert_close(found[key], value, f"{file.stem} {key}")


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(together, alone):
  out, _, logs = together
  saved = sorted(path for path in out.glob("*-*") if path.is_dir())
  assert saved, logs
  for path in saved:
    name = path.name.split("-")[1]
    whole, rest = alone.whole(name), alone.train(name, path, resume=True)
    assert f"{name}/3/loss" in rest and f"{name}/2/loss" not in rest
    for key, value in rest.items():
      assert_close(value, whole[key], f"{path.name} {key}")


@pytest.mark.slow
def test_a_notice_to_one_stops_both_at_one_step(together):
  out, _, logs = together
  first, second = json.loads((out / "stops.json").read_text())
  assert first == second and 3 <= first < 199, logs


@pytest.mark.slow
def test_the_death_of_one_ends_the_other_with_one_line(together):
  out, status, logs = together
  assert status in (137, processes.LOST), logs
  lines = [line for line in logs[0].splitlines() if "error" in line]
  assert len(lines) == 1 and "process 0: error: another process of this run is gone" in lines[0]
  assert "same command again" in lines[0] and "Traceback" not in logs[0]
  assert "of this process" in logs[0] and "of this process" not in logs[1]  # the first speaks
