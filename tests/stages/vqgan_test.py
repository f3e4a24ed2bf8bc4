"""All stages run on the convolutional tokenizer: it learns, and fine-tuning starts without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.stages import build

CLASSES = 3


@pytest.fixture
def config(tiny_config):
  tiny_config.tokenizer_kind = "vqgan"
  tiny_config.vqgan.update(
    dict(channels=32, multipliers=(1, 1, 1), z_channels=16, encoder_blocks=1, decoder_blocks=1)
  )
  return tiny_config


@pytest.fixture
def batch(smooth_images):
  return {
    "image": smooth_images(16, 16),
    "label": np.arange(16, dtype=np.int32) % CLASSES,
    "mask": np.ones(16, np.float32),
  }


def shapes(name, config, batch, restored):
  """The stage, and its first state by shapes alone."""
  stage = build(name, config, CLASSES)
  init = lambda restored: stage.init(jax.random.key(0), batch["image"].shape, restored)  # noqa: E731
  return stage, jax.eval_shape(init, restored)


def result(state):
  return {"params": state.params, "ema": state.ema, "variables": state.variables}


def test_the_tokenizer_stage_trains_it(config, batch):
  config.tokenizer.optimizer.width_base = 32
  config.tokenizer.ema_decay = 0.5
  stage = build("tokenizer", config, CLASSES)
  init = jax.jit(lambda key: stage.init(key, batch["image"].shape, {}))
  state = init(jax.random.key(0))
  assert set(state.params) == {"encoder", "quantizer", "decoder"}
  step = jax.jit(functools.partial(stage.step, axis=None))
  before = {k: jax.tree.leaves(v)[0] for k, v in state.params.items()}
  losses = []
  for _ in range(12):
    state, metrics = step(state, batch, jax.random.key(1))
    losses.append(float(metrics["reconstruction"]))
  assert losses[-1] < 0.6 * losses[0]
  assert all(np.any(jax.tree.leaves(state.params[k])[0] != before[k]) for k in before)
  sums, figures, _ = stage.evaluators()["validation"]
  found = figures(jax.device_get(jax.jit(functools.partial(sums, axis=None))(state, batch, None)))
  assert np.isfinite(found["psnr"]) and 0 < found["codes_used"] <= 1
  pictures = jax.eval_shape(stage.pictures, state, batch, jax.random.key(2))["reconstructions"]
  assert pictures.shape == (2, 16, 16, 16, 3)
  assert stage.captions == {"reconstructions": ["original", "reconstruction"]}


@pytest.fixture
def restored(config, batch):
  """What the tokenizer and the pretrain stage leave, by shapes alone."""
  found = {}
  for name in ("tokenizer", "pretrain"):
    found[name] = result(shapes(name, config, batch, found)[1])
  return found


def test_pretrain_samples_are_decoded_with_it(config, batch, restored):
  stage, state = shapes("pretrain", config, batch, restored)
  images = jax.eval_shape(stage.pictures, state, batch, jax.random.key(0))["samples"]
  assert images.shape[2:] == (16, 16, 3)


def test_finetune_has_a_generator_of_its_own(config, batch, restored):
  stage, state = shapes("finetune", config, batch, restored)
  key = jax.random.key(0)
  assert set(state.frozen["tokenizer"]) == {"encoder", "quantizer"}
  after, metrics = jax.eval_shape(functools.partial(stage.step, axis=None), state, batch, key)
  assert jax.tree.structure(after) == jax.tree.structure(state) and "loss" in metrics
  for evaluator in stage.evaluators().values():
    jax.eval_shape(functools.partial(evaluator.sums, axis=None), state, batch, key)
  for image in jax.eval_shape(stage.pictures, state, batch, key).values():
    assert image.shape[2:] == (16, 16, 3)


def test_a_fresh_generator_begins_near_the_commonest_code(config):
  stage = build("finetune", config, CLASSES)
  quantizer = stage.tokenizer.quantizer
  codebook = quantizer.init(jax.random.key(1))
  counts = jnp.zeros(quantizer.codebook_size).at[5].set(3.0)

  @jax.jit
  def init(key):
    params = stage.networks.init_generator(key, None, codebook, counts)
    return params["generator"]["mask_token"]

  token = init(jax.random.key(0))
  assert token.shape == (16, 8) and 0 < token.std(axis=0).min()
  deviation = (token - codebook["codebook"][5]) / 0.1  # of smooth tokens of deviation 1
  assert 0.5 < np.std(deviation) < 2.0
