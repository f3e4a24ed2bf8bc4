"""The gan stage: its players move and learn, classes and noise are heard, figures come out."""

import functools

import jax
import numpy as np
import pytest

CLASSES = 3


@pytest.fixture
def start(first_states):
  def make(config, images):
    batch = {"image": images, "label": np.arange(len(images), dtype=np.int32) % CLASSES}
    stage, state, _ = first_states("gan", config, CLASSES, images.shape, seed=1)
    return stage, state, batch, jax.random.key(1)

  return make


def test_players_move_and_the_discriminator_learns(start, tiny_config, smooth_images):
  tiny_config.discriminator.update(dict(attention="l2", spectral_norm=True, depth=1))
  tiny_config.generator.update(dict(depth=1, taps=()))
  tiny_config.adversary.update(dict(penalty="exact", penalty_fraction=1.0))
  tiny_config.adversary.optimizer.learning_rate = 2e-3
  stage, state, batch, key = start(tiny_config, smooth_images(16, 16))
  step = jax.jit(functools.partial(stage.step, axis=None))
  before = state
  for _ in range(20):
    state, metrics = step(state, batch, key)
  assert all(np.isfinite(float(v)) for v in metrics.values())
  assert metrics["logit_margin"] > 0.3
  for player in ("generator", "discriminator"):
    moved = jax.tree.map(
      lambda a, b: float(np.abs(a - b).max()), before.params[player], state.params[player]
    )
    assert max(jax.tree.leaves(moved)) > 0, player
  norms = [
    (path, first, last)
    for (path, first), last in zip(
      jax.tree_util.tree_leaves_with_path(before.params["discriminator"]),
      jax.tree.leaves(state.params["discriminator"]),
      strict=True,
    )
    if "initial_norm" in str(path)
  ]
  assert len(norms) == 4
  for path, first, last in norms:
    np.testing.assert_array_equal(first, last, err_msg=str(path))


def test_noise_and_class_are_heard_and_figures_come_out(start, tiny_config, smooth_images):
  stage, state, batch, key = start(tiny_config, smooth_images(8, 16))
  grids = jax.jit(stage.pictures)(state, batch, key)
  assert set(grids) == {"samples_k0", "conditioned_k0"} and set(stage.captions) < set(grids)
  samples = np.asarray(grids["samples_k0"])  # [3 draws, 3 classes, H, W, 3]
  assert samples.shape[:2] == (3, 3)
  assert np.abs(samples[0, 0] - samples[1, 0]).max() > 1e-2
  noise = np.zeros((3, 8), np.float32)
  of_class, _ = stage.render(state.params["generator"], noise, np.arange(3))
  assert np.abs(of_class[0] - of_class[1]).max() > 1e-2
  masked = batch | {"mask": np.ones(8, np.float32)}
  for name, expected in (("validation", "diversity_rms"), ("samples", "k0_patch_grid_ratio")):
    evaluator = stage.evaluators()[name]
    sums = jax.jit(functools.partial(evaluator.sums, axis=None))(state, masked, key)
    figures = evaluator.figures(jax.device_get(sums))
    assert figures[expected] > 0 and all(np.isfinite(v) for v in figures.values())
