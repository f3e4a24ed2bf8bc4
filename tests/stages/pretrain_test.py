"""The pretrain stage: permuted orders and their annealing; it learns the codes of a batch."""

import functools

import jax
import numpy as np
import pytest

from imgtx_jax.config import validation
from imgtx_jax.errors import UserError
from imgtx_jax.stages import build
from imgtx_jax.stages.pretrain import prediction_figures

CLASSES = 3


@pytest.fixture
def start(first_states):
  def make(config, images):
    stage, state, _ = first_states("pretrain", config, CLASSES, images.shape)
    return stage, state, jax.random.key(0)

  return make


def permuted_share(stage, step, count=2000):
  orders = np.asarray(stage.draw_orders(jax.random.key(0), step, np.arange(count)))
  assert np.all(np.sort(orders, axis=1) == np.arange(stage.num_codes))
  return np.mean(np.any(orders != stage.order, axis=1))


def test_permuted_orders_are_annealed_to_none(start, tiny_config, smooth_images):
  tiny_config.pretrain.permute_steps = 100
  tiny_config.pretrain.permute_anneal_steps = 200
  stage, _, _ = start(tiny_config, smooth_images(4, 16))
  assert permuted_share(stage, 0) == permuted_share(stage, 99) == 1.0
  assert permuted_share(stage, 150) == pytest.approx(0.75, abs=0.04)
  assert permuted_share(stage, 250) == pytest.approx(0.25, abs=0.04)
  assert permuted_share(stage, 300) == permuted_share(stage, 10_000) == 0.0


def test_permuted_examples_have_orders_of_their_own(start, tiny_config, smooth_images):
  tiny_config.pretrain.permute_steps = 100
  stage, _, _ = start(tiny_config, smooth_images(4, 16))
  orders = np.asarray(stage.draw_orders(jax.random.key(0), 3, np.arange(8)))
  assert len(np.unique(orders, axis=0)) == 8
  again = np.asarray(stage.draw_orders(jax.random.key(0), 3, np.arange(4, 8)))
  np.testing.assert_array_equal(again, orders[4:])  # whatever device has them
  assert np.any(np.asarray(stage.draw_orders(jax.random.key(0), 4, np.arange(8))) != orders)


def test_permuted_orders_bring_target_positions(tiny_config):
  """Without them no state would know which code it predicts."""
  tiny_config.gpt.order = "raster"
  assert not build("pretrain", tiny_config, CLASSES).gpt.target_position
  tiny_config.pretrain.permute_anneal_steps = 5
  assert build("pretrain", tiny_config, CLASSES).gpt.target_position


@pytest.mark.parametrize("permuted", [False, True])
def test_learns_the_codes_of_a_batch(start, tiny_config, smooth_images, permuted):
  """With random orders it takes longer, but learns the same."""
  tiny_config.pretrain.permute_steps = 60 if permuted else 0
  tiny_config.pretrain.permute_anneal_steps = 60 if permuted else 0
  tiny_config.pretrain.steps = 180
  tiny_config.pretrain.ema_decay = 0.9
  tiny_config.gpt.dropout = 0.0
  tiny_config.pretrain.optimizer.learning_rate = 4e-3
  stage, state, key = start(tiny_config, smooth_images(8, 16))
  batch = {"image": smooth_images(8, 16), "label": np.arange(8, dtype=np.int32) % CLASSES}
  step = jax.jit(functools.partial(stage.step, axis=None))
  for _ in range(180):
    state, metrics = step(state, batch, key)
  assert metrics["bits_per_code"] < 0.5
  codes = stage.tokenizer.encode(state.frozen["tokenizer"], stage.prepare(batch))
  counts = state.variables["code_counts"]
  figures = prediction_figures(stage.gpt, state.ema["gpt"], counts, codes, batch["label"])
  assert figures["bits_per_code"].mean() < 0.8 < figures["unigram_bits_per_code"].mean()


def test_images_are_augmented_by_key_and_step(tiny_config, smooth_images):
  images, index = np.asarray(smooth_images(8, 16)), np.arange(8)
  assert build("pretrain", tiny_config, CLASSES).augment(images, None, 0, index) is images
  tiny_config.pretrain.augment_prob = 1.0
  augment = jax.jit(build("pretrain", tiny_config, CLASSES).augment)
  first, second = (augment(images, jax.random.key(0), step, index) for step in (0, 1))
  assert np.all(np.any(first != images, axis=(1, 2, 3))) and np.any(first != second)
  part = augment(images[4:], jax.random.key(0), 0, index[4:])  # whatever device has them
  np.testing.assert_allclose(part, first[4:], atol=1e-6)


def test_a_cache_of_codes_is_not_augmented(tiny_config):
  tiny_config.pretrain.augment_prob = 0.5
  tiny_config.pretrain.code_cache = "auto"
  with pytest.raises(UserError, match="augment_prob=0.5 changes images before .* holds codes"):
    validation.check(tiny_config)
