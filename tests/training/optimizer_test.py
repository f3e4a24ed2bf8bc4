"""Schedules at chosen steps, the decay mask under scanned layers, clipping and freezing."""

import jax
import numpy as np
import optax
import pytest

from imgtx_jax.config import defaults as configs
from imgtx_jax.option_fields import read
from imgtx_jax.training import optimizer
from imgtx_jax.training.optimizer import OptimizerOptions


def options(**changes):
  """The config's own options of an optimizer, with changes."""
  config = configs.default()
  values = dict(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=0.0)
  return read(OptimizerOptions, config.optimizer, config.pretrain.optimizer, values, **changes)


# -- Schedules -------------------------------------------------------------------------------------


def rates(steps, total=100, **changes):
  schedule = optimizer.learning_rate(options(**changes), total)
  return [float(schedule(step)) for step in steps]


def test_constant_after_a_linear_warmup():
  found = rates([0, 5, 10, 11, 99], warmup_steps=10)
  np.testing.assert_allclose(found, [0.0, 0.05, 0.1, 0.1, 0.1], rtol=1e-5)
  np.testing.assert_allclose(rates([0, 99]), [0.1, 0.1], rtol=1e-5)


def test_cosine_ends_at_its_ratio():
  found = rates([0, 10, 20, 60, 100], schedule="cosine", warmup_steps=20, end_lr_ratio=0.2)
  np.testing.assert_allclose(found, [0.0, 0.05, 0.1, 0.06, 0.02], rtol=1e-5)
  np.testing.assert_allclose(rates([0, 50, 100], schedule="cosine"), [0.1, 0.05, 0.0], atol=1e-8)


def test_warmup_is_cut_short_in_a_short_run():
  found = rates([0, 3, 4], total=5, warmup_steps=1000, schedule="cosine")
  np.testing.assert_allclose(found, [0.0, 0.075, 0.1], rtol=1e-5)
  assert rates([0], total=1, warmup_steps=1000) == [pytest.approx(0.1)]


def test_unknown_schedule():
  with pytest.raises(ValueError, match="'linear'.*constant, cosine"):
    rates([0], schedule="linear")


# -- Updates ---------------------------------------------------------------------------------------

PARAMS = {
  "embed": {"kernel": np.ones((3, 4)), "bias": np.ones(4)},
  "net": {
    "layers": {
      "block": {"norm": {"scale": np.ones((2, 4))}, "mlp": {"kernel": np.ones((2, 4, 4))}},
    },
    "cls": np.ones((1, 1, 4)),
  },
}
PARAMS = jax.tree.map(lambda a: a.astype(np.float32), PARAMS)
NO_GRADS = jax.tree.map(np.zeros_like, PARAMS)


def updated(tx, grads, params=PARAMS, steps=1):
  @jax.jit
  def step(params, state):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


def test_decay_mask_takes_scanned_norms_for_vectors():
  mask = optimizer.decay_mask(PARAMS)
  assert mask["embed"] == {"kernel": True, "bias": False}
  assert mask["net"]["layers"]["block"] == {"norm": {"scale": False}, "mlp": {"kernel": True}}


def test_only_matrices_decay():
  after = updated(optimizer.make(options(weight_decay=0.5), 10), NO_GRADS)
  block = after["net"]["layers"]["block"]
  np.testing.assert_allclose(after["embed"]["kernel"], 0.95)  # 1 − .1 · .5
  np.testing.assert_allclose(block["mlp"]["kernel"], 0.95)
  np.testing.assert_array_equal(block["norm"]["scale"], 1.0)
  np.testing.assert_array_equal(after["embed"]["bias"], 1.0)


def test_clipping_bounds_the_global_norm():
  grads = jax.tree.map(lambda a: 100.0 * np.ones_like(a), PARAMS)
  small = jax.tree.map(lambda g: g / optax.tree.norm(grads), grads)
  # With an epsilon over the gradients Adam is all but linear, and shows what reaches it.
  plain = options(weight_decay=0.0, epsilon=100.0)
  clipped = updated(
    optimizer.make(options(weight_decay=0.0, epsilon=100.0, clip_norm=1.0), 10), grads
  )
  expected = updated(optimizer.make(plain, 10), small)
  unclipped = updated(optimizer.make(plain, 10), grads)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(1 - a, 1 - b, rtol=1e-3), clipped, expected)
  assert np.all(1 - unclipped["embed"]["bias"] > 10 * (1 - clipped["embed"]["bias"]))


def test_frozen_parameters_keep_their_values_and_have_no_moments():
  grads = jax.tree.map(np.ones_like, PARAMS)
  tx = optimizer.make(options(weight_decay=0.5), 10, freeze="^embed/|norm")
  after = updated(tx, grads, steps=3)
  jax.tree.map(np.testing.assert_array_equal, after["embed"], PARAMS["embed"])
  block = after["net"]["layers"]["block"]
  np.testing.assert_array_equal(block["norm"]["scale"], 1.0)
  assert np.all(block["mlp"]["kernel"] < 1.0) and np.all(after["net"]["cls"] < 1.0)
  moments = sum(leaf.size for leaf in jax.tree.leaves(tx.init(PARAMS)) if leaf.ndim)
  assert moments == 2 * (2 * 4 * 4 + 4)


def test_a_frozen_network_still_clips_by_the_trained_gradients_alone():
  grads = jax.tree.map(np.ones_like, PARAMS)
  huge = grads | {"embed": jax.tree.map(lambda a: 1e6 * a, grads["embed"])}
  tx = optimizer.make(options(clip_norm=1.0, epsilon=1.0), 10, freeze="^embed/")
  jax.tree.map(np.testing.assert_array_equal, updated(tx, huge), updated(tx, grads))
