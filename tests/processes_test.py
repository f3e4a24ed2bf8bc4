"""Several real processes: the same numbers as one, faults, resuming, samples."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from imgtx_jax import checkpoint, main, metric_log, processes
from imgtx_jax.errors import UserError

HERE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.usefixtures("quick_compilation")


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


def test_every_stage_as_by_one_process(tmp_path):
  """Five steps of every stage, parameters split over the two, and one under pmap."""
  status, logs = launch(
    tmp_path / "logs",
    HERE / "process_steps.py",
    tmp_path / "two",
    "jit:2:tokenizer,pretrain,finetune,gan",
    "pmap:1:tokenizer",
  )
  assert status == 0, logs
  steps = load_module("process_steps")
  names = ("tokenizer", "pretrain", "finetune", "gan")
  expected = steps.train(names, "jit", 1, devices=jax.devices()[:1])
  for mode, stages in (("jit", names), ("pmap", names[:1])):
    with np.load(tmp_path / f"two-{mode}.npz") as found:
      mine = {name for name in expected if name.split("/")[0] in stages}
      assert set(found) == mine and len(mine) > 50
      for name in mine:
        scale = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        np.testing.assert_allclose(
          found[name], expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=f"{mode} {name}"
        )


def test_a_lost_process_a_notice_and_another_number_of_processes(tmp_path):
  """One of two is killed: the other ends and says so. Both again, one gets SIGTERM: both save at
  one step. One process (of four devices) goes on, and ends as if it had been alone all the time."""
  config = load_module("tiny_config").get_config().unlock()
  config.tokenizer.steps, config.checkpoint_steps, config.evaluate_steps = 40, 4, 0
  directory = tmp_path / "work"
  settings = [
    f"--config.{key}={value}"
    for key, value in (("tokenizer.steps", 40), ("checkpoint_steps", 4), ("evaluate_steps", 0))
  ]
  command = (
    HERE / "faulty_main.py",
    f"--config={HERE / 'tiny_config.py'}:tokenizer",
    f"--workdir={directory}",
    *settings,
  )
  began = time.monotonic()
  status, logs = launch(tmp_path / "killed", *command, FAULT="kill:1:6")
  assert time.monotonic() - began < 100
  assert status == 137 or status == processes.LOST, logs
  assert "another process of this run is gone" in logs[0] or "another task died" in logs[0], logs
  assert checkpoint.Checkpoints(directory / "1-tokenizer" / "checkpoints").latest() == 4

  status, logs = launch(tmp_path / "term", *command, FAULT="term:1:2", SLOW="0.2")
  assert status == 143, logs
  (said,) = {log.splitlines()[-1] for log in logs}  # the same step in both
  assert "stopped by SIGTERM and saved at step" in said
  assert "going on from step 4" in logs[0] and "going on" not in logs[1]
  step = int(said.split("at step ")[1].split()[0])
  assert 6 < step < 40

  main.run(config.lock(), directory)
  main.run(config, tmp_path / "whole")
  ours, theirs = (
    checkpoint.load(d / "1-tokenizer" / "checkpoints")[0] for d in (directory, tmp_path / "whole")
  )
  assert int(ours["step"]) == 40
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours["ema"], theirs["ema"]
  )
  lines = [
    [
      line["train/loss"]
      for line in metric_log.read_metrics(d / "1-tokenizer")
      if "train/loss" in line
    ]
    for d in (directory, tmp_path / "whole")
  ]
  np.testing.assert_allclose(*lines, rtol=1e-5)
  assert len(lines[0]) == 20
  summary = json.loads((directory / "1-tokenizer" / "summary.json").read_text())
  assert summary["corrupt_images"] == 0


def test_two_processes_draw_what_one_draws(tmp_path, untrained_workdir, monkeypatch):
  config = load_module("tiny_config").get_config("gan").unlock()
  directory = tmp_path / "work"
  untrained_workdir(config, directory, ["a", "b", "c"])
  command = ("-m", "imgtx_jax.sample", "--workdir", directory, "--num=7", "--labels=a,c,b")
  files = {}
  for count in (1, 2):
    out = tmp_path / str(count)
    options = (f"--out={out}/grid.png", f"--save_images={out}/single")
    status, logs = launch(tmp_path / f"logs-{count}", *command, *options, count=count)
    assert status == 0, logs
    assert "7 images" in logs[0] and not any("images" in log for log in logs[1:])
    files[count] = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.png")}
  assert len(files[1]) == 8 and files[1] == files[2]
