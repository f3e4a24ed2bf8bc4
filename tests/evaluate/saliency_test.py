"""Attention roll-out by hand, input gradients against finite differences, and overlays."""

import cv2
import jax
import numpy as np
import pytest

from imgtx_jax.evaluate import saliency
from imgtx_jax.models.discriminator import Discriminator
from imgtx_jax.models.transformer import BlockConfig


def test_roll_out_by_hand():
  stay = np.tile(np.eye(3), (2, 4, 1, 1))
  np.testing.assert_allclose(saliency.roll_out(stay), [1, 0, 0])
  even = np.full((1, 2, 3, 3), 1 / 3)
  np.testing.assert_allclose(saliency.roll_out(even), [2 / 3, 1 / 6, 1 / 6], rtol=1e-6)
  # Layer 0 brings token 2 into token 1, layer 1 brings token 1 into token 0.
  steps = np.stack([np.eye(3)[[0, 2, 2]], np.eye(3)[[1, 1, 2]]])[:, None]
  np.testing.assert_allclose(saliency.roll_out(steps), [1 / 2, 1 / 4, 1 / 4])


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_roll_out_of_uniform_attention_is_uniform(layers):
  found = np.asarray(saliency.roll_out(np.full((layers, 2, 9, 9), 1 / 9)))
  # What the residual branches keep stays with the token itself.
  np.testing.assert_allclose(found[1:], (1 - 0.5**layers) / 9, rtol=1e-5)
  assert found[0] == pytest.approx(0.5**layers + (1 - 0.5**layers) / 9, rel=1e-5)


def test_roll_out_sums_to_one():
  weights = np.random.default_rng(0).uniform(size=(4, 2, 7, 7))
  weights /= weights.sum(axis=-1, keepdims=True)
  found = np.asarray(saliency.roll_out(weights))
  assert found.sum() == pytest.approx(1, rel=1e-5) and found.min() > 0


@pytest.fixture(scope="module")
def judge():
  """(discriminator, params, answers): answers(x [B, H, W, 3], label) → logit and the
  log-probability of the likeliest class."""
  block = BlockConfig(num_heads=2, mlp_dim=32, remat="full")
  network = saliency.exact(Discriminator(patch=4, width=16, depth=2, classes=3, block=block))
  labels = np.zeros(1, np.int32)
  params = network.init(jax.random.key(0), np.zeros((1, 8, 12, 3), np.float32), labels)["params"]

  @jax.jit
  def answers(x):
    verdict = network.apply({"params": params}, x, labels)
    return verdict.logit[0], jax.nn.log_softmax(verdict.class_logits).max()

  return network, params, answers


def test_look(judge):
  network, params, answers = judge
  images = np.random.default_rng(1).integers(0, 255, (3, 8, 12, 3)).astype(np.uint8)
  found = jax.jit(lambda *args: saliency.saliency_maps(network, *args))(
    params, images, np.zeros(3, np.int32)
  )
  assert found["attention"].shape == (3, 2, 3)
  assert found["attention"].min() > 0 and found["attention"].sum(axis=(1, 2)).max() < 1
  pixels, row, column = images[1:2].astype(np.float32) / 127.5 - 1, 5, 9
  slopes = np.zeros(2)
  for channel in range(3):
    step = np.zeros_like(pixels)
    step[0, row, column, channel] = 1e-2
    up, down = (np.array(answers(x)) for x in (pixels + step, pixels - step))
    slopes += np.abs(up - down) / 2e-2
  assert found["logit"][1, row, column] == pytest.approx(slopes[0], rel=0.05)
  assert found["class"][1, row, column] == pytest.approx(slopes[1], rel=0.05)


def test_overlay_heats_the_right_place():
  hot_corner = np.zeros((2, 2))
  hot_corner[0, 1] = 5.0
  picture = saliency.overlay(np.full((8, 8, 3), 100, np.uint8), hot_corner, cv2.INTER_NEAREST)
  assert picture.shape == (8, 8, 3)
  hot, cold = picture[:4, 4:].reshape(-1, 3), picture[4:].reshape(-1, 3)
  assert (hot == hot[0]).all() and (cold == cold[0]).all()
  assert hot[0, 0] > 200 and hot[0, 0] > hot[0, 2] and cold[0].max() < 40


def test_cap_cuts_few_peaks_only():
  gradient = np.ones((10, 10))
  gradient[0, 0] = 1000
  assert saliency.cap(gradient).max() < 20 and saliency.cap(gradient).min() == 1
