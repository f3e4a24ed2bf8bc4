"""The discriminator: overlapping patches, the projection's class term, its three layers."""

import jax
import numpy as np
import pytest

from imgtx_jax.models.discriminator import Discriminator, overlapping_patches
from imgtx_jax.models.transformer import BlockConfig

B, SIZE, PATCH, D, CLASSES, LAYERS, HIDDEN = 2, 8, 4, 32, 5, 2, 64
BLOCK = BlockConfig(2, HIDDEN, qk_norm=True, layer_scale=0.1)
MODEL = Discriminator(patch=PATCH, width=D, depth=LAYERS, classes=CLASSES, block=BLOCK, overlap=2)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (B, SIZE, SIZE, 3)).astype(np.float32)
LABELS = np.array([1, CLASSES])


@pytest.fixture(scope="module")
def params(random_params):
  return random_params(MODEL, IMAGES, LABELS)


def apply(params, images, labels):
  return MODEL.apply({"params": params}, images, labels)


@pytest.fixture(scope="module")
def judge(params, differentiate):
  """Images and labels → Verdict, under these parameters."""
  return lambda images, labels: differentiate(apply, params, images, labels)[0]


def test_shapes_and_parameter_count(params, judge, num_params):
  verdict = judge(IMAGES, LABELS)
  assert verdict.logit.shape == (B,)
  assert verdict.class_logits.shape == (B, CLASSES)
  assert verdict.features.shape == (B, D)
  layer = 4 * D * D + 3 * D * HIDDEN + 2 * D + 2 * 16 + 2 * D  # norms, QK-norms, layer scales
  embed = (PATCH + 4) ** 2 * 3 * D + D + D  # its bias, and [cls]
  heads = D + (D * D + D) + (CLASSES + 1) * D + (D + 1) + (D * CLASSES + CLASSES)
  assert num_params(params) == LAYERS * layer + embed + heads


def test_every_parameter_has_a_gradient(params, differentiate, dead):
  assert dead(differentiate(apply, params, IMAGES, LABELS)[1]) == []


def test_the_label_enters_the_logit_by_an_inner_product(params, judge):
  first, second = judge(IMAGES, np.array([1, 4])), judge(IMAGES, np.array([3, CLASSES]))
  np.testing.assert_allclose(first.class_logits, second.class_logits, atol=1e-6)
  hidden = first.features @ params["discriminate"]["kernel"] + params["discriminate"]["bias"]
  judged = np.asarray(jax.nn.silu(hidden))
  table = params["label"]["embedding"]
  expected = np.sum(judged * (table[[1, 4]] - table[[3, CLASSES]]), axis=-1)
  np.testing.assert_allclose(first.logit - second.logit, expected, atol=1e-4)
  plain = judged @ params["logit"]["kernel"][:, 0] + params["logit"]["bias"]
  term = np.sum(judged * table[[1, 4]], axis=-1)
  np.testing.assert_allclose(first.logit, plain + term, atol=1e-4)
  classify = judged @ params["classify"]["kernel"] + params["classify"]["bias"]
  np.testing.assert_allclose(first.class_logits, classify, atol=1e-4)


def test_features_are_those_of_the_class_token(params, differentiate):
  block = params["transformer"]["layers"]["block"]
  closed = block | {name: np.zeros_like(block[name]) for name in ("attention_scale", "mlp_scale")}
  alone = params | {"transformer": {"layers": {"block": closed}}}
  cls = params["cls"][0, 0]
  expected = params["norm"]["scale"] * cls / np.sqrt(np.mean(cls**2) + 1e-5)
  features = differentiate(apply, alone, IMAGES, LABELS)[0].features
  np.testing.assert_allclose(features, np.stack([expected] * B), atol=1e-4)


def test_it_sees_where_things_are(random_params):
  """The same patches in other places are another image."""
  model = MODEL.clone(overlap=0)
  params = random_params(model, IMAGES, LABELS)
  logit = jax.jit(lambda images: model.apply({"params": params}, images, LABELS).logit)
  assert np.abs(logit(np.roll(IMAGES, PATCH, axis=2)) - logit(IMAGES)).max() > 1e-3


@pytest.mark.parametrize("overlap", [0, 1, PATCH])
def test_patches_reach_into_their_neighbours(overlap):
  shape = (8, 12)
  images = np.random.default_rng(1).standard_normal((B, *shape, 3)).astype(np.float32)
  padded = np.pad(images, ((0, 0), (overlap,) * 2, (overlap,) * 2, (0, 0)), mode="edge")
  size = PATCH + 2 * overlap
  expected = [
    padded[:, i : i + size, j : j + size].reshape(B, -1)
    for i in range(0, shape[0], PATCH)
    for j in range(0, shape[1], PATCH)
  ]
  found = jax.jit(overlapping_patches, static_argnums=(1, 2))(images, PATCH, overlap)
  np.testing.assert_array_equal(found, np.stack(expected, axis=1))
