"""Evaluators over held-out images: sums are added, rows appended, on any number of devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.data.sources import ArraySource
from imgtx_jax.distributed import sharding
from imgtx_jax.stages import online_fd
from imgtx_jax.stages.base import Evaluator
from imgtx_jax.training.evaluator_runner import EvaluatorRunner, add

COUNT = 21


def test_rows_are_appended_and_the_rest_is_added():
  first = {"a": np.float32(1), "b": {"c": np.ones(2)}, "rows": {"x": np.ones((2, 3), np.float32)}}
  second = {"a": np.float32(2), "b": {"c": np.ones(2)}, "rows": {"x": np.zeros((1, 3), np.float32)}}
  totals = add(add(None, first), second)
  assert totals["a"] == 3 and totals["a"].dtype == np.float64
  assert totals["b"]["c"].tolist() == [2, 2]
  assert totals["rows"]["x"].sum(axis=1).tolist() == [3, 3, 0]


@pytest.fixture
def make(tiny_config):
  """make(devices) → EvaluatorRunner of 21 grey images, image i of the value i, in batches of 8."""
  images = (
    np.zeros((COUNT, 16, 16, 3), np.uint8) + np.arange(COUNT, dtype=np.uint8)[:, None, None, None]
  )
  source = ArraySource(images, np.arange(COUNT) % 3, np.arange(COUNT), ["a", "b", "c"])

  def sums(state, batch, key, *, axis):
    values = batch["image"][:, 0, 0, 0].astype(jnp.float32)
    rows = online_fd.gather({"value": state["scale"] * values, "mask": batch["mask"]}, axis)
    return {"total": jnp.sum(values * batch["mask"]), "rows": rows}

  def figures(totals):
    rows = totals["rows"]
    return {"total": totals["total"], "values": rows["value"][rows["mask"] > 0].tolist()}

  def make_one(devices):
    evaluators = {"all": Evaluator(sums, figures), "few": Evaluator(sums, figures, limit=5)}
    stage = types.SimpleNamespace(batch_size=8, evaluators=lambda: evaluators)
    return EvaluatorRunner(stage, tiny_config, source, devices)

  return make_one


@pytest.mark.parametrize("mode, count", [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_figures_of_all_and_of_few(make, mode, count):
  devices = sharding.make_parallel(mode, devices=jax.devices()[:count])
  state = devices.put_state({"scale": np.float32(0.1)})
  held_out = make(devices)
  tenth = [float(np.float32(0.1) * np.float32(i)) for i in range(COUNT)]
  found = held_out.figures(state, jax.random.key(0))
  assert found["all/total"] == sum(range(COUNT)) and found["all/values"] == tenth
  assert found["few/values"] == [tenth[i] for i in (0, 4, 8, 12, 16)]
  found = held_out.figures(state, jax.random.key(0), limit=7)
  assert found["all/values"] == tenth[::3] and len(found["few/values"]) == 5
