"""Distances while training: of the samples and the reconstructions that the stages show."""

import functools

import jax
import numpy as np
import pytest

from imgtx_jax import rng
from imgtx_jax.data import transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.metrics import kid
from imgtx_jax.metrics.frechet import Moments, frechet_distance
from imgtx_jax.pretrained.vgg import VGG16_LAYERS, vgg16_means
from imgtx_jax.stages import build, online_fd
from imgtx_jax.stages.base import sampling

WIDTH = 6


@pytest.fixture
def weights(monkeypatch):
  """VGG16 with 6 channels in every layer, in place of the installed weights."""
  draw = np.random.default_rng(0)
  layers = {}
  for layer in VGG16_LAYERS:
    inputs = 3 if layer == "1_1" else WIDTH
    kernel = draw.normal(size=(3, 3, inputs, WIDTH)) * (2 / (9 * inputs)) ** 0.5
    layers[f"conv{layer}"] = {
      "kernel": kernel.astype(np.float32),
      "bias": 0.1 * draw.normal(size=WIDTH).astype(np.float32),
    }
  monkeypatch.setattr(online_fd.lpips_weights, "available", lambda: True)
  monkeypatch.setattr(online_fd.lpips_weights, "load", lambda: {"vgg": layers, "heads": []})
  return layers


def expected(weights, ours, real):
  """(FD, KID) of images in [-1, 1], the short way."""
  run = jax.jit(vgg16_means)
  ours, real = (np.asarray(run(weights, transforms.denormalize(x))) for x in (ours, real))
  a, b = Moments().add(ours), Moments().add(real)
  fd = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
  return fd, kid.squared_mmd(ours, real)


def batch_of(images, left_out=0):
  count = len(images)
  mask = (np.arange(count) < count - left_out).astype(np.float32)
  return {"image": images, "label": np.arange(count, dtype=np.int32) % 3, "mask": mask}


def test_samples_on_any_devices(tiny_config, smooth_images, weights):
  tiny_config.fd_images = 12
  tiny_config.generator.update(dict(depth=1, taps=()))
  tiny_config.discriminator.depth = 1
  stage, key = build("gan", tiny_config, 3), jax.random.key(1)
  batch = batch_of(smooth_images(16, 16), left_out=3)
  state = stage.init(key, batch["image"].shape, {})
  assert set(state.frozen) == {"vgg16"}
  evaluator = stage.evaluators()["samples"]
  assert evaluator.limit == 12
  found = {}
  for mode, count in (("jit", 1), ("pmap", 4)):
    devices = sharding.make_parallel(mode, devices=jax.devices()[:count])
    sums = devices.compile_sums(evaluator.sums)
    totals = jax.device_get(sums(devices.put_state(state), devices.put_batch(batch), key))
    assert totals["rows"]["k0"].shape == (16, WIDTH)
    found[mode] = evaluator.figures(totals)
  assert set(found["jit"]) == {"k0_patch_grid_ratio", "k0_fd_vgg16", "k0_kid_vgg16"}
  assert found["pmap"] == pytest.approx(found["jit"], rel=1e-4)
  keys = rng.example_keys(rng.stream(key, "samples", 0), np.arange(13))
  options = sampling(tiny_config)
  draw = jax.jit(lambda params, labels: stage.sample(params, labels, keys, options)[0])
  drawn = draw(stage.current_params(state), batch["label"][:13])
  fd, kid = expected(weights, drawn, transforms.normalize(batch["image"])[:13])
  assert fd > 0 and found["jit"]["k0_fd_vgg16"] == pytest.approx(fd, rel=1e-3)
  assert found["jit"]["k0_kid_vgg16"] == pytest.approx(kid, rel=1e-3)


def test_reconstructions(tiny_config, smooth_images, weights):
  tiny_config.fd_images = 12
  stage, key = build("tokenizer", tiny_config, 3), jax.random.key(1)
  batch = batch_of(smooth_images(16, 16), left_out=3)
  state = stage.init(key, batch["image"].shape, {})
  evaluator = stage.evaluators()["reconstructions"]
  sums = jax.jit(functools.partial(evaluator.sums, axis=None))(state, batch, key)
  found = evaluator.figures(jax.device_get(sums))
  images = transforms.normalize(batch["image"])[:13]
  decoded = stage.tokenizer.decode(state.ema, stage.tokenizer.encode(state.ema, images))
  fd, kid = expected(weights, decoded, images)
  assert fd > 0
  assert found == pytest.approx({"rfd_vgg16": fd, "rkid_vgg16": kid}, rel=1e-3)


def test_lpips_lends_its_weights(tiny_config, weights):
  tiny_config.fd_images = 12
  tiny_config.tokenizer.lpips_weight = 1.0
  frozen = build("tokenizer", tiny_config, 3).perceptual_weights()
  assert set(frozen) == {"lpips"} and online_fd.weights(frozen) is weights


def test_equal_sets_and_sets_that_are_none():
  rows = {"real": np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)}
  rows |= {"same": rows["real"], "mask": np.ones(9), "lost": rows["real"] * np.nan}
  found = online_fd.figures(rows, "same")
  assert found["fd_vgg16"] == pytest.approx(0, abs=1e-9) and found["kid_vgg16"] <= 1e-9
  assert all(np.isnan(v) for v in online_fd.figures(rows, "lost").values())
  assert online_fd.figures(rows | {"mask": np.arange(9) == 1}, "same") == {}


def test_without_the_weights_it_is_left_out_with_one_warning(tiny_config, monkeypatch, caplog):
  tiny_config.fd_images = 12
  monkeypatch.setattr(online_fd.lpips_weights, "available", lambda: False)
  with caplog.at_level("WARNING", logger="absl"):
    stages = [build(name, tiny_config, 3) for name in ("tokenizer", "pretrain", "gan")]
  assert caplog.text.count("FD-VGG16 is left out") == 1 and "fd_images=12" in caplog.text
  assert all(stage.perceptual_weights() == {} for stage in stages)
  assert "reconstructions" not in stages[0].evaluators()
