"""One small trained pipeline, and what becomes of it: reports, skips, resumes, samples, errors."""

import json
import os
import pathlib
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from imgtx_jax import main, rng, sample
from imgtx_jax.cli.command import Interrupted, parse
from imgtx_jax.data import pipeline
from imgtx_jax.errors import UserError
from imgtx_jax.training import checkpoint, loop, metric_writer, recompilation, workdir

ROOT = pathlib.Path(__file__).parents[1]
TASKS = ("1-tokenizer", "1-pretrain", "1-finetune")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fresh_tiny_config, without_transfers):
  """A work directory in which all stages ran without a break; no step moved an array unasked."""
  directory = tmp_path_factory.mktemp("trained")
  with without_transfers():
    main.run(small(fresh_tiny_config()), directory)
  return directory


def small(config):
  """The tests' config: in jit mode, whose programs the compilation cache keeps."""
  config.parallel.mode = "jit"
  config.generator.taps = ()
  return config.lock()


def command(parsed, *arguments):
  """Runs a Command with these arguments."""
  parse(parsed, ["command", *map(str, arguments)]).run()


def final_state(directory, task):
  return checkpoint.load(directory / task / "checkpoints")[0]


def figures(directory, task):
  return [
    {k: v for k, v in line.items() if k != "seconds"}
    for line in metric_writer.read_metrics(directory / task)
  ]


def test_leaves_what_the_readme_says(trained):
  assert (trained / "report.html").stat().st_size > 10_000
  report = json.loads((trained / "report.json").read_text())
  assert "1-finetune/validation/psnr" in report["figures"]
  assert "1-tokenizer/baseline/nearest_training_image_psnr" in report["figures"]
  for task in TASKS:
    summary = json.loads((trained / task / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["peak_memory_bytes"] > 0
    lines = figures(trained, task)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6]
    assert list((trained / task / "pictures").glob("*.png"))
    assert list((trained / task).glob("events*"))
  grids = {p.name for p in (trained / "1-finetune" / "pictures").iterdir()}
  assert {f"samples_k{k}-0000006.png" for k in (0, 4, 16)} <= grids
  assert {f"refined_k{k}-0000006.png" for k in (0, 16)} <= grids


def test_finished_stages_are_skipped(trained, tiny_config, capsys):
  before = {p: p.stat().st_mtime_ns for p in trained.rglob("checkpoints/**/*")}
  main.run(small(tiny_config), trained)
  assert capsys.readouterr().out.count("nothing to do") == 3
  assert before == {p: p.stat().st_mtime_ns for p in trained.rglob("checkpoints/**/*")}


def test_another_config_is_refused(trained, tiny_config):
  tiny_config.seed = 1
  with pytest.raises(UserError, match="seed is 0 there and 1 here"):
    main.run(small(tiny_config), trained)


def test_log_steps_may_change(trained, tiny_config):
  tiny_config.log_steps = 3
  main.run(small(tiny_config), trained)


def test_a_stage_needs_those_before_it(tmp_path, tiny_config):
  with pytest.raises(UserError, match="starts from stage tokenizer"):
    main.run(small(tiny_config), tmp_path, only="pretrain")


def interrupted_iterator(monkeypatch, after, act):
  """Calls act() before the batch number `after` (from 0) of every training iterator."""
  make = pipeline.train_iterator

  class Watched:
    def __init__(self, *args, **kwargs):
      self.inner, self.count = make(*args, **kwargs), 0

    def __next__(self):
      if self.count == after:
        act()
      self.count += 1
      return next(self.inner)

    def get_state(self):
      return self.inner.get_state()

    def set_state(self, state):
      self.inner.set_state(state)

  monkeypatch.setattr(loop.pipeline, "train_iterator", Watched)


class Killed(Exception):
  """Stands for a kill: nothing is saved on the way out."""


def kill():
  raise Killed


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def test_resumed_equals_uninterrupted(trained, tiny_config, tmp_path, monkeypatch):
  """Each stage is broken off, by SIGTERM before its third batch (it saves there) or as if killed
  before its sixth (a checkpoint lies at step 4), and run again."""
  config = small(tiny_config)
  ways = ((5, kill, Killed), (2, terminate, Interrupted), (5, kill, Killed))
  for task, (after, act, error) in zip(TASKS, ways, strict=True):
    with monkeypatch.context() as patch:
      interrupted_iterator(patch, after, act)
      with pytest.raises(error):
        main.run(config, tmp_path, only=task[2:])
    assert not workdir.is_finished(tmp_path, workdir.StageRun(1, task[2:]))
    main.run(config, tmp_path, only=task[2:])
    assert figures(tmp_path, task) == figures(trained, task)
    ours, theirs = final_state(tmp_path, task), final_state(trained, task)
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_divergence_stops_the_run(tmp_path, tiny_config):
  tiny_config.tokenizer.optimizer.learning_rate = 1e30
  tiny_config.tokenizer.optimizer.clip_norm = 0.0
  with pytest.raises(UserError, match="diverged"):
    main.run(small(tiny_config), tmp_path, only="tokenizer")
  with pytest.raises(UserError, match="found: none"):
    final_state(tmp_path, "1-tokenizer")


def with_two_rounds(config, trained, directory):
  """The config, and a copy of what was trained that has a second round to go."""
  config.rounds = 2
  shutil.copytree(trained, directory)
  flat = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps(flat | {"rounds": 2}))
  return small(config)


@pytest.fixture(scope="module")
def two_rounds(trained, tmp_path_factory, fresh_tiny_config):
  """A work directory whose second round ran without a break."""
  directory = tmp_path_factory.mktemp("rounds") / "whole"
  main.run(with_two_rounds(fresh_tiny_config(), trained, directory), directory)
  return directory


def test_rounds_repeat_pretrain_and_finetune(two_rounds, tiny_config):
  tiny_config.rounds = 2
  names = [task.name for task in workdir.stage_runs(tiny_config)]
  assert names == [*TASKS, "2-pretrain", "2-finetune"]
  directory = two_rounds
  report = json.loads((directory / "report.json").read_text())
  assert [stage["directory"] for stage in report["stages"]] == names
  for stage in ("pretrain", "finetune"):
    bits = [report["figures"][f"{n}-{stage}/validation/bits_per_code"] for n in (1, 2)]
    assert report["rounds"][f"{stage}/validation/bits_per_code"] == bits
  # The second round's GPT goes on from the first's: it predicts better than after its first steps.
  assert bits[1] < bits[0]
  assert "round 2 · step 6" in (directory / "report.html").read_text()


def test_a_later_round_replays_nothing_of_an_earlier_one(
  trained, tiny_config, tmp_path, monkeypatch
):
  """All that a step draws comes from its batch and from its key."""
  directory, found = tmp_path / "rounds", {}
  config = with_two_rounds(tiny_config, trained, directory)
  shutil.rmtree(directory / "1-pretrain")

  def begin(trainer):
    noise = rng.normal(rng.stream(trainer.root, "noise", 0), np.arange(16), (8,))
    found[trainer.title] = {"noise": np.asarray(noise), **next(trainer.iterator)}
    trainer._close()
    shutil.copytree(trained / "1-pretrain", trainer.directory, dirs_exist_ok=True)

  monkeypatch.setattr(loop.Trainer, "run", begin)
  main.run(config, directory, only="pretrain")
  first, second = found["1-pretrain"], found["2-pretrain"]
  for name in ("noise", "image", "label"):
    assert np.mean(first[name] == second[name]) < 0.5, name
  # The first round draws what an experiment of one round does.
  expected = rng.normal(rng.stream(jax.random.key(config.seed), "noise", 0), np.arange(16), (8,))
  np.testing.assert_array_equal(first["noise"], expected)


@pytest.mark.slow
def test_a_resumed_second_round_equals_an_unbroken_one(
  trained, two_rounds, tiny_config, tmp_path, monkeypatch
):
  directory = tmp_path / "broken"
  config = with_two_rounds(tiny_config, trained, directory)
  for stage in ("pretrain", "finetune"):
    with monkeypatch.context() as patch:
      interrupted_iterator(patch, 5, kill)
      with pytest.raises(Killed):
        main.run(config, directory, only=stage)
    assert not workdir.is_finished(directory, workdir.StageRun(2, stage))
    main.run(config, directory, only=stage)
    assert figures(directory, f"2-{stage}") == figures(two_rounds, f"2-{stage}")
    ours, theirs = (final_state(place, f"2-{stage}") for place in (directory, two_rounds))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("prefix", [0, 16])
def test_samples_at_every_prefix(trained, tmp_path, prefix, capsys):
  out, codes = tmp_path / "grid.png", tmp_path / "codes.npy"
  command(
    sample.COMMAND,
    *("--workdir", trained, "--labels", "0,3", "--num", 6, "--out", out),
    *("--prefix", prefix, "--save_codes", codes, "--save_images", tmp_path / "single"),
  )
  assert f"k = {prefix} of 16" in capsys.readouterr().out
  assert out.exists() and len(list((tmp_path / "single").glob("*.png"))) == 6
  drawn = np.load(codes)
  assert drawn.shape == (6, 16)
  assert np.count_nonzero(np.any(drawn != 0, axis=0)) <= prefix


def assert_one_line(words, *arguments):
  """The command ends in one line with all the words."""
  with pytest.raises(UserError) as caught:
    command(*arguments)
  message = str(caught.value)
  assert len(message.splitlines()) == 1 and all(word in message for word in words), message


def test_sampling_says_what_is_wrong(trained, tmp_path):
  start = (sample.COMMAND, "--out", tmp_path / "x.png", "--workdir")
  assert_one_line([str(tmp_path), "train first"], *start, tmp_path)
  assert_one_line(["--labels=12 is no class", "0 … 8"], *start, trained, "--labels", "12")
  assert_one_line(["--prefix=17", "0 … 16"], *start, trained, "--prefix", 17)


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--config=configs/nope.py"], ["configs/nope.py", "configs/quickstart.py"]),
    (["--config.tokenizer.stepps=3"], ["tokenizer.stepps", "tokenizer.steps"]),
    (["--config.data.image_size=30"], ["image_size=30", "patch=4"]),
    (["--stage=nope"], ["nope", "tokenizer, pretrain, finetune"]),
    (["--config.data.source=folder", "--config.data.path=nowhere"], ["nowhere"]),
  ],
)
def test_training_says_what_is_wrong(tmp_path, monkeypatch, arguments, words):
  monkeypatch.chdir(ROOT)
  config = [] if arguments[0].startswith("--config=") else ["--config=configs/quickstart.py"]
  assert_one_line(words, main.COMMAND, *config, "--workdir", tmp_path / "new", *arguments)
  assert not (tmp_path / "new").exists()


def test_debug_nans_holds_for_the_whole_run(monkeypatch):
  """Set for the process, it would be off again after an operation that suspends it."""

  def run(*_):
    with jax.debug_nans(False):
      pass
    log = jax.jit(jax.numpy.log)
    ones = jax.numpy.ones(2)
    log(ones)
    with pytest.raises(FloatingPointError, match="nan"):
      log(-ones)

  monkeypatch.setattr(main, "run", run)
  config = ROOT / "configs" / "quickstart.py"
  command(main.COMMAND, f"--config={config}", "--workdir=nowhere", "--debug_nans")


def test_a_second_compilation_is_one_line():
  lines = []
  trainer = types.SimpleNamespace(
    title="1-gan",
    arguments=recompilation.ArgumentWatch(),
    parallel=types.SimpleNamespace(put_batch=lambda batch: batch),
    iterator=iter([{"label": jax.numpy.ones(n)} for n in (4, 4, 3)]),
    state={},
    step_fn=lambda state, batch, key: (state, {}),
    step_key=None,
    display=types.SimpleNamespace(line=lines.append),
  )
  for step in range(3):
    loop.Trainer._advance(trainer, step)
  assert lines == ["1-gan: compiled again at step 2 (0 s): batch/label was (4,) and is (3,)"]
