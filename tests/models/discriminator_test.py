"""The discriminator: overlapping patches, the projection's class term, its three layers."""

import functools

import flax
import jax
import numpy as np
import pytest

from imgtx_jax.models.discriminator import Discriminator, overlapping_patches

B, SIZE, PATCH, D, CLASSES, LAYERS, HIDDEN = 2, 8, 4, 32, 5, 2, 64
TRUNK = flax.core.freeze(dict(heads=2, hidden=HIDDEN, qk_norm=True, layer_scale=0.1))
MODEL = Discriminator(patch=PATCH, width=D, layers=LAYERS, classes=CLASSES, trunk=TRUNK, overlap=2)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (B, SIZE, SIZE, 3)).astype(np.float32)
LABELS = np.array([1, CLASSES])


@pytest.fixture(scope="module")
def params(random_params):
  return random_params(MODEL, IMAGES, LABELS)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images, labels):
  return model.apply({"params": params}, images, labels)


def test_shapes_and_parameter_count(params, num_params):
  verdict = apply(MODEL, params, IMAGES, LABELS)
  assert verdict.logit.shape == (B,)
  assert verdict.class_logits.shape == (B, CLASSES)
  assert verdict.features.shape == (B, D)
  layer = 4 * D * D + 3 * D * HIDDEN + 2 * D + 2 * 16 + 2 * D  # norms, QK-norms, layer scales
  embed = (PATCH + 4) ** 2 * 3 * D + D + D  # its bias, and [cls]
  heads = D + (D * D + D) + (CLASSES + 1) * D + (D + 1) + (D * CLASSES + CLASSES)
  assert num_params(params) == LAYERS * layer + embed + heads


def test_every_parameter_has_a_gradient(params, without_gradient):
  assert without_gradient(lambda p: apply(MODEL, p, IMAGES, LABELS), params) == []


def test_the_label_enters_the_logit_by_an_inner_product(params):
  first = apply(MODEL, params, IMAGES, np.array([1, 4]))
  second = apply(MODEL, params, IMAGES, np.array([3, CLASSES]))
  np.testing.assert_allclose(first.class_logits, second.class_logits, atol=1e-6)
  hidden = first.features @ params["discriminate"]["kernel"] + params["discriminate"]["bias"]
  judged = jax.nn.silu(hidden)
  table = params["label"]["embedding"]
  expected = np.sum(judged * (table[[1, 4]] - table[[3, CLASSES]]), axis=-1)
  np.testing.assert_allclose(first.logit - second.logit, expected, atol=1e-4)
  head = judged @ params["logit"]["kernel"][:, 0] + params["logit"]["bias"]
  np.testing.assert_allclose(first.logit, head + np.sum(judged * table[[1, 4]], axis=-1), atol=1e-4)
  classify = judged @ params["classify"]["kernel"] + params["classify"]["bias"]
  np.testing.assert_allclose(first.class_logits, classify, atol=1e-4)


def test_it_sees_where_things_are(params):
  rolled = np.roll(IMAGES, PATCH, axis=2)
  moved = apply(MODEL, params, rolled, LABELS).logit
  assert np.abs(moved - apply(MODEL, params, IMAGES, LABELS).logit).max() > 1e-3


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
