"""The best checkpoint: which it is, that it is kept through a kill, and who may start from it."""

import json
import math

import numpy as np
import pytest

from imgtx_jax import main
from imgtx_jax.data import pipeline
from imgtx_jax.errors import UserError
from imgtx_jax.pretrained.vgg import VGG16_LAYERS
from imgtx_jax.sampling.sampler import load_stage
from imgtx_jax.stages import build, online_fd
from imgtx_jax.stages.tokenizer import TokenizerStage
from imgtx_jax.training import best_checkpoint, evaluator_runner, loop, metric_writer, workdir
from imgtx_jax.training.best_checkpoint import Best


def test_the_first_of_equals_is_the_best():
  lowest, highest = Best("x", "min"), Best("x", "max")
  values = [3.0, math.nan, 2.0, 2.0, 5.0]
  assert [lowest.look(i, {"x": v}) for i, v in enumerate(values)] == [1, 0, 1, 0, 0]
  assert [highest.look(i, {"x": v}) for i, v in enumerate(values)] == [1, 0, 0, 0, 1]
  assert (lowest.step, highest.step) == (2, 4)
  assert not lowest.look(9, {"y": 0.0}) and not Best().look(9, {"x": 1.0})
  again = Best("x", "min")
  again.restore(json.loads(json.dumps(lowest.meta())))
  assert again.meta() == {"metric": "x", "mode": "min", "step": 2, "value": 2.0}
  again.restore(None)
  assert again.meta() is None


def test_which_way_is_better():
  names = ("samples/k4_fd_vgg16", "reconstructions/rfd_vgg16", "validation/bits_per_code")
  assert {best_checkpoint.direction(name) for name in names} == {"min"}
  names = ("validation/psnr", "validation/class_accuracy_k0", "validation/diversity_lpips")
  assert {best_checkpoint.direction(name) for name in names} == {"max"}
  with pytest.raises(UserError, match="config.best_metric='validation/logit_margin'.*best_mode"):
    best_checkpoint.direction("validation/logit_margin")
  assert best_checkpoint.direction("validation/logit_margin", "max") == "max"


def thin_vgg16():
  """VGG16 with two channels in every layer."""
  shape = lambda layer: (3, 3, 3 if layer == "1_1" else 2, 2)  # noqa: E731
  layers = {
    f"conv{layer}": {"kernel": np.ones(shape(layer), np.float32), "bias": np.zeros(2, np.float32)}
    for layer in VGG16_LAYERS
  }
  return {"vgg": layers, "heads": []}


def test_every_stage_goes_by_the_first_figure_that_it_has(tiny_config, monkeypatch):
  monkeypatch.setattr(online_fd.lpips_weights, "available", lambda: True)
  monkeypatch.setattr(online_fd.lpips_weights, "load", thin_vgg16)
  config = tiny_config
  config.fd_images = 4
  config.generator.taps = ()
  stages = [build(name, config, 3) for name in config.stages]
  assert [b.metric for b in best_checkpoint.choose(config, stages).values()] == ["", "", ""]
  known = best_checkpoint.figure_names(config, stages)
  config.best_metric = "samples/k4_fd_vgg16, validation/psnr"
  chosen = best_checkpoint.choose_among(config, known)
  assert {name: (b.metric, b.mode) for name, b in chosen.items()} == {
    "tokenizer": ("validation/psnr", "max"),
    "pretrain": ("", ""),
    "finetune": ("samples/k4_fd_vgg16", "min"),
  }
  config.best_metric = "samples/fid"
  with pytest.raises(UserError) as caught:
    best_checkpoint.choose_among(config, known)
  message = str(caught.value)
  assert "\n" not in message and "config.best_metric='samples/fid' is no figure" in message
  for words in (
    "tokenizer: validation/psnr",
    "reconstructions/rfd_vgg16",
    "; pretrain: ",
    "validation/bits_per_code",
    "samples/fd_vgg16",
    "samples/k0_fd_vgg16",
    "samples/k16_fd_vgg16",
  ):
    assert words in message


# -- In a run --------------------------------------------------------------------------------------

PSNR = {2: 11.0, 4: 19.0, 6: 19.0, 8: 13.0}  # after these steps


def small(config):
  """A tokenizer of 8 steps, evaluated at every second one and saved at 3, 6 and 8."""
  config.parallel.mode = "jit"
  config.stages = ("tokenizer",)
  config.generator.taps = ()
  config.tokenizer.steps, config.keep_checkpoints = 8, 1
  config.checkpoint_steps, config.evaluate_steps, config.picture_steps = 3, 2, 0
  config.best_metric = "validation/psnr"
  return config.lock()


@pytest.fixture
def scripted(monkeypatch):
  """Evaluations say what PSNR has, and steps but count: what is kept is all that matters here."""

  def figures(self, state, root, limit=None):
    return {"validation/psnr": PSNR[int(np.asarray(state.step).reshape(-1)[0])]}

  def step(self, state, batch, key, *, axis):
    after = state.replace(step=state.step + 1)
    return after, {"loss": after.step.astype(np.float32)}

  monkeypatch.setattr(evaluator_runner.EvaluatorRunner, "figures", figures)
  monkeypatch.setattr(TokenizerStage, "step", step)
  monkeypatch.setattr(TokenizerStage, "pictures", lambda *_: {})


class Killed(Exception):
  """Stands for a kill."""


class Watched:
  """A training iterator that is killed at its batch number `last`."""

  make, last = pipeline.train_iterator, 0

  def __init__(self, *args, **kwargs):
    self.inner, self.drawn = Watched.make(*args, **kwargs), 0

  def __getattr__(self, name):
    return getattr(self.inner, name)

  def __next__(self):
    self.drawn += 1
    if self.drawn == Watched.last:
      raise Killed
    return next(self.inner)


def run_until(last, config, directory, monkeypatch):
  """Trains, and is killed at its batch number `last`."""
  with monkeypatch.context() as patch:
    Watched.last = last
    patch.setattr(loop.pipeline, "train_iterator", Watched)
    with pytest.raises(Killed):
      main.run(config, directory)


def left_by(directory):
  """(steps of the checkpoints, what the summary says of the best, the logged figures)."""
  folder = directory / "1-tokenizer"
  steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir())
  lines = [
    (line["step"], line["validation/psnr"])
    for line in metric_writer.read_metrics(folder)
    if "validation/psnr" in line
  ]
  return steps, json.loads((folder / "summary.json").read_text())["best"], lines


def test_the_best_is_kept_and_used(scripted, tiny_config, tmp_path, monkeypatch, capsys):
  config = small(tiny_config)
  main.run(config, tmp_path / "whole")
  expected = {"metric": "validation/psnr", "mode": "max", "step": 4, "value": 19.0}
  steps, found, lines = left_by(tmp_path / "whole")
  assert (steps, found) == ([4, 8], expected)
  assert lines == [*PSNR.items(), (8, 13.0)]
  assert "The best checkpoint is kept: step 4" in (tmp_path / "whole" / "report.html").read_text()
  # Killed before the step after the best, whose checkpoint is the last; and long after it, when the
  # one of step 6 is the last.
  for last in (5, 8):
    directory = tmp_path / f"broken {last}"
    run_until(last, config, directory, monkeypatch)
    main.run(config, directory)
    assert left_by(directory) == left_by(tmp_path / "whole")

  task, stages = workdir.StageRun(1, "tokenizer"), ("tokenizer",)
  capsys.readouterr()
  for kind, step, words in (("best", 4, "the best checkpoint"), ("last", 8, "not the best")):
    found = workdir.results(tmp_path / "whole", [task], kind)["tokenizer"]
    assert int(found["step"]) == step
    assert words in (line := capsys.readouterr().out) and "step 4, validation/psnr 19" in line
    found = load_stage(tmp_path / "whole", config, ["a"] * 9, stages, kind)[1]
    assert int(found["tokenizer"]["step"]) == step


def test_a_best_that_is_gone_is_forgotten(scripted, tiny_config, tmp_path, monkeypatch, caplog):
  config = small(tiny_config)
  run_until(8, config, tmp_path, monkeypatch)
  folder = tmp_path / "1-tokenizer" / "checkpoints"
  (folder / "4").rename(tmp_path / "elsewhere")
  main.run(config, tmp_path)
  assert "the best checkpoint, step 4, is gone" in caplog.text
  steps, found, _ = left_by(tmp_path)
  assert steps == [8] and (found["step"], found["value"]) == (8, 13.0)


def test_an_unknown_figure_leaves_nothing_behind(tiny_config, tmp_path):
  tiny_config.best_metric = "validation/fid"
  tiny_config.stages = ("tokenizer",)
  with pytest.raises(UserError, match="'validation/fid' is no figure of these stages. tokenizer: "):
    main.run(tiny_config.lock(), tmp_path / "new")
  assert not (tmp_path / "new").exists()
