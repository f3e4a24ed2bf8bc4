"""The guard: when it fires, what a run falls back to, and that a resumed run does the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax import main
from imgtx_jax.config import defaults
from imgtx_jax.data import pipeline
from imgtx_jax.errors import UserError
from imgtx_jax.stages.pretrain import PretrainStage
from imgtx_jax.stages.tokenizer import TokenizerStage
from imgtx_jax.training import checkpoint, collapse_monitor, loop, metric_writer
from imgtx_jax.training import train_state as states


def make(mode="retry"):
  return collapse_monitor.Guard(mode, lambda step, means: "too large" if means["x"] > 1 else None)


def test_it_takes_several_lines_in_a_row():
  subject = make()
  for step, value in enumerate([2, 2, 0, 2, 2]):
    subject.look(step, {"x": value})
  with pytest.raises(collapse_monitor.Collapse, match="collapsed, too large"):
    subject.look(5, {"x": 2})
  off = make("off")
  for step in range(4):
    off.look(step, {"x": 2})


def test_a_checkpoint_under_an_alarm_is_not_good():
  subject = make()
  assert subject.meta(10)["good"] == 10
  subject.look(12, {"x": 2})
  meta = subject.meta(20)
  assert (meta["good"], meta["alarms"]) == (10, 1)
  resumed = make()
  resumed.restore(meta)
  resumed.look(22, {"x": 2})
  with pytest.raises(collapse_monitor.Collapse):
    resumed.look(24, {"x": 2})
  assert "step 10" in resumed.back_to()


def test_numbers_that_are_not_finite():
  with pytest.raises(
    collapse_monitor.Collapse, match="diverged, b not finite within the last 2 steps"
  ):
    make().check_window({"a": [0.0, 1.0], "b": [0.0, np.nan]})
  fields = dict(opt_state={}, ema={}, variables={}, frozen={"x": jnp.array(np.nan)})
  fine = states.TrainState(step=jnp.array(1), params={"w": jnp.ones(3)}, **fields)
  make().check_state(fine)
  with pytest.raises(collapse_monitor.Collapse, match="weights"):
    make().check_state(fine.replace(params={"w": jnp.array([1.0, np.inf])}))


# -- In a run: a collapse made on purpose ----------------------------------------------------------


def small(config, mode):
  """A tokenizer alone, of 8 steps with a checkpoint at 2, 4, 6 and 8, without evaluations."""
  config.parallel.mode = "jit"
  config.guard = mode
  config.stages = ("tokenizer",)
  config.generator.taps = ()
  config.tokenizer.steps = 8
  config.checkpoint_steps = 2
  config.evaluate_steps = 0
  return config.lock()


@pytest.fixture
def collapsing(monkeypatch):
  """break_it(kind): the tokenizer collapses at step 5 ("nan": its weights; "sign": a metric) unless
  its rates were lowered."""
  monkeypatch.setattr(collapse_monitor, "LINES", 1)

  def break_it(kind):
    plain = TokenizerStage.step

    def step(self, state, batch, key, *, axis):
      after, metrics = plain(self, state, batch, key, axis=axis)
      ill = (state.step >= 4) & (state.rate > 0.75)
      if kind == "nan":  # the metrics of this step do not show it yet
        params = jax.tree.map(lambda x: jnp.where(ill, jnp.nan, x), after.params)
        return after.replace(params=params), metrics
      return after, metrics | {"ill": ill.astype(jnp.float32), "rate": state.rate}

    monkeypatch.setattr(TokenizerStage, "step", step)
    if kind == "sign":
      sign = lambda self, step, means: "made on purpose" if means["ill"] > 0 else None  # noqa: E731
      monkeypatch.setattr(TokenizerStage, "guard", sign)

  return break_it


def final(directory):
  return checkpoint.load(directory / "1-tokenizer" / "checkpoints")


def assert_fell_back_and_finished(directory):
  state, meta = final(directory)
  assert (int(state["step"]), float(state["rate"])) == (8, 0.5)
  assert states._all_finite(state)
  (line,) = meta["collapses"]
  assert "back to the last good checkpoint, step 4" in line
  lines = metric_writer.read_metrics(directory / "1-tokenizer")
  assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6, 8]
  return line


def set_aside(directory):
  """(step, number of the fall) of the lines that training fell back from."""
  lines = metric_writer.read_metrics(directory / "1-tokenizer", set_aside=True)
  return [(line["step"], line["fall"]) for line in lines]


def test_nobodys_learning_rate_is_lowered_unasked():
  assert defaults.default().guard == "stop"


def test_a_run_whose_weights_are_lost_falls_back_once_and_finishes(
  collapsing, tiny_config, tmp_path, capsys
):
  collapsing("nan")
  main.run(small(tiny_config, "retry"), tmp_path)
  assert assert_fell_back_and_finished(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["stop", "off"])
def test_a_run_stops_with_its_last_good_checkpoint(mode, collapsing, tiny_config, tmp_path):
  collapsing("nan")
  with pytest.raises(UserError, match="diverged, .* step 4, is kept: .*guard=retry") as caught:
    main.run(small(tiny_config, mode), tmp_path)
  assert "\n" not in str(caught.value)
  state, _ = final(tmp_path)
  assert int(state["step"]) == 4 and states._all_finite(state)


class Killed(Exception):
  """Stands for a kill."""


class Watched:
  """A training iterator that is killed at its batch number `last` (over several iterators)."""

  make, last, drawn = pipeline.train_iterator, 0, 0

  def __init__(self, *args, **kwargs):
    self.inner = Watched.make(*args, **kwargs)

  def __getattr__(self, name):
    return getattr(self.inner, name)

  def __next__(self):
    Watched.drawn += 1
    if Watched.drawn == Watched.last:
      raise Killed
    return next(self.inner)


def test_a_run_killed_after_a_collapse_ends_as_an_unbroken_one(
  collapsing, tiny_config, tmp_path, monkeypatch
):
  collapsing("sign")
  config = small(tiny_config, "retry")
  main.run(config, tmp_path / "whole")
  line = assert_fell_back_and_finished(tmp_path / "whole")
  assert "made on purpose" in line and line in (tmp_path / "whole" / "report.html").read_text()
  assert set_aside(tmp_path / "whole") == [(6, 1)]
  # Six batches until the collapse, then from the fifth on: killed before the first checkpoint since
  # the fall, and after it.
  for last in (8, 10):
    directory = tmp_path / f"broken {last}"
    with monkeypatch.context() as patch:
      Watched.last, Watched.drawn = last, 0
      patch.setattr(loop.pipeline, "train_iterator", Watched)
      with pytest.raises(Killed):
        main.run(config, directory)
    main.run(config, directory)
    (ours, our_meta), (theirs, their_meta) = final(directory), final(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert our_meta["collapses"] == their_meta["collapses"]
    assert set_aside(directory) == [(6, 1)]


def test_other_stages_watch_for_nothing_but_finite_numbers(tiny_config):
  assert PretrainStage(tiny_config, 3).guard(1, {"loss": 1e9}) is None
