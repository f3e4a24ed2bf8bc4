"""Faults made on purpose, and what becomes of a run: a table.

  JAX_PLATFORMS=cpu python tests/faults.py [--only kill,bit] [--kills 20] [--folder DIR]

Each fault breaks a short run (the tiny config's tokenizer, 12 steps, a checkpoint every 4), runs
the same command again, and compares the end with that of a run that nothing happened to: every
number of the state and every logged metric. What differs is lost; exit status 1 if anything is.
"""

import argparse
import importlib.util
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from imgtx_jax.training import checkpoint, metric_writer

HERE = pathlib.Path(__file__).parent
TASK = "1-tokenizer"
SETTINGS = ("tokenizer.steps=12", "evaluate_steps=6", "picture_steps=0")
FAULTS = {}


def fault(name, title):
  """Registers a function (runs) → what is to be said; AssertionError where anything is lost."""

  def register(function):
    FAULTS[name] = (title, function)
    return function

  return register


class Runs:
  """Runs the tests' tiny main in work directories below one folder."""

  def __init__(self, folder, kills, seed):
    self.folder, self.kills, self.random = pathlib.Path(folder), kills, random.Random(seed)
    self.whole = self.folder / "whole"
    self.environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "PYTHONPATH": str(HERE.parent),
      "XLA_FLAGS": "",
    }

  def command(self, directory, *settings):
    config = [f"--config.{setting}" for setting in (*SETTINGS, "checkpoint_steps=4", *settings)]
    main = [sys.executable, HERE / "faulty_main.py", f"--config={HERE / 'tiny_config.py'}"]
    return [str(word) for word in (*main, f"--workdir={directory}", *config)]

  def run(self, directory, *settings, limit=None, **environment):
    """(status, all that was said); limit: bytes that a file may have."""

    def restrict():
      if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
      self.command(directory, *settings),
      env=self.environment | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      preexec_fn=restrict if limit else None,  # a fork, which JAX warns of
    )
    return done.returncode, done.stdout

  def launch(self, directory, name, **environment):
    """As run, by two processes; (status, [the log of each])."""
    logs = self.folder / f"logs-{name}"
    script = ["bash", str(HERE.parent / "launch" / "local_processes.sh"), "2"]
    environment = self.environment | {"LOGS": str(logs)} | environment
    done = subprocess.run([*script, *self.command(directory)], env=environment, capture_output=True)
    return done.returncode, [(logs / f"process-{i}.log").read_text() for i in range(2)]

  def broken(self, name):
    """A new work directory, whose run was killed after 10 of the 12 steps: checkpoints 4 and 8."""
    directory = self.folder / name
    status, said = self.run(directory, FAULT="kill:0:10", SLOW="1")
    assert status == -9 and steps(directory)[:1] == [8], said
    return directory

  def finish(self, directory, *settings, **environment):
    """Runs the command (again); what it said. The end must be that of a whole run."""
    status, said = self.run(directory, *settings, **environment)
    assert status == 0, said
    self.compare(directory)
    return said

  def compare(self, directory, tolerance=0.0):
    (ours, _), (theirs, _) = (
      checkpoint.load(d / TASK / "checkpoints") for d in (directory, self.whole)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )
    lines = [metric_writer.read_metrics(d / TASK) for d in (directory, self.whole)]
    assert len(lines[0]) == len(lines[1]), "logged lines are lost or repeated"
    for ours, theirs in zip(*lines, strict=True):
      assert ours.keys() == theirs.keys()
      for key in ours.keys() - {"seconds"}:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=10 * tolerance, err_msg=key)


def steps(directory):
  return checkpoint._steps(checkpoint.Checkpoints(directory / TASK / "checkpoints").directory)


def said_of(text, *words):
  """The line of text with all the words."""
  lines = [line for line in text.splitlines() if all(word in line for word in words)]
  assert lines, f"nobody said {words}: {text[-1500:]}"
  return lines[0]


def resumed(said):
  return said_of(said, "going on from step").split(": ")[-1]


@fault("kill", "kill -9 at random moments")
def kill(runs):
  seconds = []
  for number in range(runs.kills):
    directory = runs.folder / f"kill-{number}"
    running = subprocess.Popen(
      runs.command(directory),
      env=runs.environment | {"FAULT": "none:0:0", "SLOW": "0.2"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    if number % 4:  # most of them while it trains, the others while it starts
      while running.poll() is None and not (directory / TASK).exists():
        time.sleep(0.05)
    seconds.append(runs.random.uniform(0, 8))
    time.sleep(seconds[-1])
    running.kill()
    running.wait()
    runs.finish(directory)
    shutil.rmtree(directory)
  return f"{runs.kills} kills, each run ended as the whole one"


def by_signal(kind, batch):
  def check(runs):
    directory = runs.folder / kind
    status, said = runs.run(directory, FAULT=f"{kind}:0:{batch}")
    assert status == 143, said
    stopped = said_of(said, "stopped by SIGTERM and saved")
    again = runs.finish(directory)
    return f"{stopped.split(': ')[1].split(';')[0]}; {resumed(again)}"

  return check


fault("term", "SIGTERM during a step")(by_signal("term", 5))
fault("save", "SIGTERM during a save")(by_signal("save", 2))
fault("evaluate", "SIGTERM during an evaluation")(by_signal("evaluate", 4))


@fault("process", "one of two processes killed")
def process(runs):
  directory = runs.folder / "process"
  began = time.monotonic()
  status, logs = runs.launch(directory, "killed", FAULT="kill:1:10", SLOW="0.3")
  seconds = time.monotonic() - began
  assert status != 0
  lost = [line for line in logs[0].splitlines() if "process of this run is gone" in line]
  lost += [line for line in logs[0].splitlines() if "another task died" in line]
  assert lost, logs[0][-1500:]
  status, logs = runs.launch(directory, "again")
  assert status == 0, logs
  runs.compare(directory, tolerance=1e-5)
  return f"the other ended within {seconds:.0f} s of the start: {lost[0][:60]}…; {resumed(logs[0])}"


@fault("notice", "SIGTERM to one of two processes")
def notice(runs):
  directory = runs.folder / "notice"
  status, logs = runs.launch(directory, "notice", FAULT="term:1:2", SLOW="0.3")
  assert status == 143, logs
  first, second = (said_of(log, "stopped by SIGTERM and saved") for log in logs)
  assert first == second, (first, second)
  status, said = runs.run(directory)
  assert status == 0, said
  runs.compare(directory, tolerance=1e-5)
  return f"both {first.split(': ')[1].split(';')[0]}; one alone {resumed(said)}"


def damages():
  path = HERE / "training" / "checkpoint_test.py"
  spec = importlib.util.spec_from_file_location("checkpoint_test", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def by_damage(name):
  def check(runs):
    directory = runs.broken(f"damage-{name}")
    getattr(damages(), f"damage_{name}")(directory / TASK / "checkpoints" / "8")
    said = runs.finish(directory)
    warning = said_of(said, "is damaged, passed over").split("passed over: ")[1]
    return f"{warning[:60]}; {resumed(said)}"

  return check


fault("bit", "a flipped bit in the latest checkpoint")(by_damage("bit"))
fault("truncate", "a truncated file")(by_damage("truncate"))
fault("empty", "an emptied step")(by_damage("empty"))
fault("manifest", "a missing manifest")(by_damage("commit"))


@fault("disk", "a full disk during a save")
def disk(runs):
  directory = runs.broken("disk")
  shutil.rmtree(directory / TASK / "checkpoints" / "8")
  status, said = runs.run(directory, limit=2**15)
  assert status == 2, said
  said = said_of(said, "error: cannot write a checkpoint")
  assert checkpoint.load(directory / TASK / "checkpoints")[0]["step"] == 4
  runs.finish(directory)
  return said[:90] + "…; step 4 intact"


@fault("records", "corrupt records in the data")
def records(runs):
  data, draw = runs.folder / "data", np.random.default_rng(0)
  for split, count in (("train", 40), ("val", 8)):
    for number in range(count):
      path = data / split / "ab"[number % 2] / f"{number:02}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(draw.integers(0, 255, (20, 20, 3), np.uint8)).save(path)
  broken = data / "train" / "a" / "00.png"
  broken.write_bytes(broken.read_bytes()[:50])
  status, said = runs.run(
    runs.folder / "records", "data.source=folder", f"data.path={data}", "data.threads=1"
  )
  assert status == 0, said
  summary = (runs.folder / "records" / TASK / "summary.json").read_text()
  assert '"corrupt_images": 1' in summary, summary
  return "1 of 40 skipped, counted in the summary"


@fault("nan", "NaN injected into a step")
def nan(runs):
  status, said = runs.run(runs.folder / "stop", "guard=stop", FAULT="nan:0:5")
  assert status == 2, said
  stopped = said_of(said, "error: ", "diverged", "is kept")
  kept, _ = checkpoint.load(runs.folder / "stop" / TASK / "checkpoints")
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept)) and kept["step"] == 4
  status, said = runs.run(runs.folder / "retry", "guard=retry", FAULT="nan:0:5")
  assert status == 0, said
  back = said_of(said, "diverged", "back to the last good checkpoint, step 4")
  assert stopped and back
  return "guard=stop: stopped, step 4 kept; guard=retry: back to step 4, finished"


@fault("clock", "another clock and host name after a restart")
def clock(runs):
  directory = runs.broken("clock")
  said = runs.finish(directory, CLOCK="-86400", HOST="another-host")
  return f"a day back, another host; {resumed(said)}"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", help="where the runs lie; a new one, removed again")
  given = parser.parse_args()
  names = given.only.split(",")
  if unknown := sorted(set(names) - set(FAULTS)):
    parser.error(f"no such fault: {unknown[0]}; choose of {', '.join(FAULTS)}")
  folder = pathlib.Path(given.folder or tempfile.mkdtemp(prefix="imgtx_jax-faults-")).absolute()
  runs, lost = Runs(folder, given.kills, given.seed), 0
  if not (runs.whole / TASK / "summary.json").exists():
    status, said = runs.run(runs.whole)
    assert status == 0, said
  for name in names:
    title, check = FAULTS[name]
    began = time.monotonic()
    try:
      outcome, mark = check(runs), "nothing lost"
    except AssertionError as error:
      outcome, mark, lost = " ".join(str(error).split())[-300:], "LOST", lost + 1
    seconds = time.monotonic() - began
    print(f"{title:<45} {mark:<13} {seconds:4.0f} s  {outcome}", flush=True)
  if not given.folder:
    shutil.rmtree(folder)
  sys.exit(1 if lost else 0)


if __name__ == "__main__":
  main()
