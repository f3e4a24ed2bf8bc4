"""The stylizer's head: it starts at a fixed mixture, draws no grid, and follows all it is given."""

import jax
import numpy as np
import pytest

from imgtx_jax.models import texture_synthesis
from imgtx_jax.models.edit_head import EditHead

SHAPE, PATCH, D, S = (6, 7), 4, 8, 5
N = SHAPE[0] * SHAPE[1]
SIZE = (SHAPE[0] * PATCH, SHAPE[1] * PATCH)
HEAD = EditHead(patch=PATCH, channels=32)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


TOKENS, STYLE, IMAGE = normal(2, N, D), normal(2, S), normal(2, *SIZE, 3)
DETAIL, GAINS = normal(2, *SIZE, 3, seed=1), np.float32([[1.0, 1.5, 0.7], [0.5, 2.0, 1.2]])
GIVEN = TOKENS, SHAPE, STYLE, IMAGE, DETAIL, GAINS


@pytest.fixture(scope="module")
def start():
  return jax.jit(HEAD.init, static_argnums=2)(jax.random.key(0), *GIVEN)


@pytest.fixture(scope="module")
def drawn(start):
  """drawn(tokens, modulation, image, detail, gains): the change, weights random all over."""
  leaves, treedef = jax.tree.flatten(start)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  shaken = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  params = jax.tree.unflatten(treedef, shaken)
  return jax.jit(
    lambda tokens, style, image=IMAGE, detail=DETAIL, gains=GAINS: HEAD.apply(
      params, tokens, SHAPE, style, image, detail, gains
    )
  )


def test_at_the_start_the_detail_of_both_images_is_mixed(start):
  change = HEAD.apply(start, *GIVEN)
  own, laid = (texture_synthesis.detail_bands(x, PATCH) for x in (IMAGE, DETAIL))
  kept = [0.85 * GAINS[:, i, None, None, None] - 1 for i in (2, 1, 0)]  # the coarse one last
  expected = [0.5 * t + k * o for t, k, o in zip(laid, kept, own, strict=True)]
  np.testing.assert_allclose(change, texture_synthesis.sum_bands(expected), atol=1e-5)


def test_everything_given_counts(drawn):
  change = drawn(TOKENS, STYLE)
  for other in (
    (2 * TOKENS[:, ::-1], STYLE),
    (TOKENS, -STYLE),
    (TOKENS, STYLE, -IMAGE),
    (TOKENS, STYLE, IMAGE, -DETAIL),
    (TOKENS, STYLE, IMAGE, DETAIL, 2 * GAINS),
  ):
    assert np.abs(drawn(*other) - change).max() > 0.01


def test_equal_tokens_on_a_flat_image_draw_detail_and_no_pattern(drawn):
  flat = np.tile(TOKENS[:, :1], (1, N, 1)), STYLE, np.full_like(IMAGE, 0.3)
  found = np.stack([drawn(*flat, normal(*DETAIL.shape, seed=i)) for i in range(200)])
  inner = found[:, :, 8:-8, 8:-8]  # at the edges the convolutions know less
  assert inner.std(0).min() > 0.01
  # In the mean over details no pixel of a patch is another's better.
  mean = inner.mean(0)
  spread = np.abs(mean - mean.mean((1, 2), keepdims=True)) / inner.std(0)
  assert spread.max() < 5 / 200**0.5


def test_a_token_reaches_its_surroundings_only(drawn):
  other = TOKENS.copy()
  other[:, 0] += normal(2, D, seed=1)
  changed = np.abs(drawn(other, STYLE, IMAGE) - drawn(TOKENS, STYLE, IMAGE)).max((0, 3))
  assert changed[:PATCH, :PATCH].min() > 0
  # Enlarging reaches 1.5 pixels of half the size and 1 of the full one, convolutions 2 and 3.
  assert changed[13].max() > 0 and not changed[14:].any() and not changed[:, 14:].any()


def test_a_patch_that_is_no_power_of_two():
  head = EditHead(patch=6, channels=16)
  image = normal(1, 12, 18, 3)
  given = TOKENS[:1, :6], (2, 3), STYLE[:1], image, -image, GAINS[:1]
  assert head.apply(head.init(jax.random.key(0), *given), *given).shape == image.shape
