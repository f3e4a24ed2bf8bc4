"""The tokenizer stage learns; its adversary and LPIPS switch run."""

import functools

import jax
import numpy as np
import pytest

from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.stages import base as stage_module
from imgtx_jax.stages import build
from imgtx_jax.training import optimizer


def train(stage, batch, steps, key):
  """The state after so many steps, and the first and the last step's metrics."""
  init = functools.partial(stage.init, batch_shape=batch["image"].shape, restored={})
  state = jax.jit(init)(key)
  step = jax.jit(functools.partial(stage.step, axis=None), donate_argnums=0)
  state = jax.tree.map(lambda x: x.copy(), state)
  history = []
  for _ in range(steps):
    state, metrics = step(state, batch, key)
    history.append(metrics)
  return state, history[0], history[-1]


def test_overfits_eight_images(tiny_config, smooth_images):
  tiny_config.tokenizer.steps = 500
  tiny_config.tokenizer.batch_size = 8
  tiny_config.tokenizer.optimizer.learning_rate = 4e-3
  tiny_config.tokenizer.optimizer.warmup_steps = 20
  tiny_config.tokenizer.optimizer.weight_decay = 0.0
  tiny_config.quantizer.codebook_size = 256
  for name in ("encoder", "generator"):
    tiny_config[name].update(dict(width=48, hidden=96))
  tiny_config.generator.update(dict(taps=(), head_channels=16))
  stage = build("tokenizer", tiny_config, 3)
  batch = {"image": smooth_images(8, 16), "label": np.zeros(8, np.int32)}
  state, *_ = train(stage, batch, 500, jax.random.key(0))
  images = stage.prepare(batch)
  decoded = stage.tokenizer.decode(state.params, stage.tokenizer.encode(state.params, images))
  assert float(image_metrics.psnr(images, decoded).min()) > 30.0


def test_first_step_draws_the_codebook_from_data(tiny_config, smooth_images):
  stage = build("tokenizer", tiny_config, 3)
  batch = {"image": smooth_images(16, 16), "label": np.zeros(16, np.int32)}
  _, metrics, _ = train(stage, batch, 1, jax.random.key(0))
  assert metrics["codes_revived"] > 0.5 * tiny_config.quantizer.codebook_size


def test_adversary_learns_to_tell_reconstructions(tiny_config, smooth_images):
  tiny_config.tokenizer.adversarial_weight = 0.1
  stage = build("tokenizer", tiny_config, 3)
  batch = {"image": smooth_images(16, 16), "label": np.zeros(16, np.int32)}
  state, _, metrics = train(stage, batch, 40, jax.random.key(0))
  assert metrics["logit_margin"] > 0.05
  assert "discriminator" in state.params and "discriminator" not in state.ema


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(tiny_config, smooth_images):
  tiny_config.tokenizer.adversarial_weight = 0.5
  tiny_config.tokenizer.adversarial_adaptive = True
  stage = build("tokenizer", tiny_config, 3)
  # image = kernel · x: the gradients at the kernel are x · cotangent.
  kernel, x = jax.numpy.full((1,), 2.0), jax.numpy.array([1.0, 3.0])

  def render(params):
    kernel = params["generator"]["head"]["rgb"]["kernel"]
    return kernel * x, [], {"commitment": kernel.sum()}

  _, pull = jax.vjp(render, {"generator": {"head": {"rgb": {"kernel": kernel}}}})
  ours = (jax.numpy.array([1.0, 1.0]), [], {"commitment": jax.numpy.array(1.0)})
  theirs = (jax.numpy.array([0.0, 0.5]), [])
  (image, _, codes), metrics = stage._oppose(ours, theirs, pull, 0, None)
  assert float(metrics["adversarial_ratio"]) == pytest.approx(4.0 / 1.5, rel=1e-3)
  np.testing.assert_allclose(image, [1.0, 1.0 + 0.5 * 4.0 / 1.5 * 0.5], rtol=1e-3)
  assert codes == ours[2]


def test_weight_decay_skips_vectors(tiny_config):
  stage = build("tokenizer", tiny_config, 3)
  state = jax.eval_shape(lambda k: stage.init(k, (1, 16, 16, 3), {}), jax.random.key(0))
  mask = optimizer.decay_mask(state.params)
  block = mask["encoder"]["transformer"]["layers"]["block"]
  assert block["mlp"]["w2"]["kernel"] and not block["mlp_norm"]["scale"]


def test_lpips_without_its_weights_is_left_out_with_a_line(tiny_config, monkeypatch, caplog):
  monkeypatch.setattr(stage_module.lpips_weights, "available", lambda: False)
  tiny_config.tokenizer.lpips_weight = 1.0
  stage = build("tokenizer", tiny_config, 3)
  with caplog.at_level("WARNING", logger="absl"):
    assert stage.perceptual_weights() == {}
  assert "lpips_weight=1" in caplog.text and "imgtx_jax[perceptual]" in caplog.text


def test_lpips_is_part_of_the_loss(tiny_config, monkeypatch, smooth_images):
  monkeypatch.setattr(stage_module.lpips_weights, "available", lambda: True)
  monkeypatch.setattr(stage_module.lpips_weights, "load", lambda: {"vgg": {}, "heads": []})
  distance = lambda params, x, y, *, dtype: jax.numpy.abs(x - y).mean(axis=(1, 2, 3))  # noqa: E731
  monkeypatch.setattr("imgtx_jax.stages.tokenizer.perceptual.lpips", distance)
  tiny_config.tokenizer.lpips_weight = 1.0
  stage = build("tokenizer", tiny_config, 3)
  batch = {"image": smooth_images(16, 16), "label": np.zeros(16, np.int32)}
  _, first, last = train(stage, batch, 30, jax.random.key(0))
  assert 0 < last["lpips"] < first["lpips"]
