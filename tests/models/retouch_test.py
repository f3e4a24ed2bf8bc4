"""The stylizer's head: it starts at nothing, draws no grid, and follows all that it is given."""

import jax
import numpy as np
import pytest

from imgtx_jax.models.retouch import RetouchHead, enlarge, grain

SHAPE, PATCH, D, S = (6, 7), 4, 8, 5
N = SHAPE[0] * SHAPE[1]
SIZE = (SHAPE[0] * PATCH, SHAPE[1] * PATCH)
HEAD = RetouchHead(patch=PATCH, channels=32)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ORIGIN = np.zeros(2, np.int32)
TOKENS, STYLE, IMAGE = normal(2, N, D), normal(2, S), normal(2, *SIZE, 3)


@pytest.fixture(scope="module")
def drawn():
  """drawn(tokens, modulation, image, origin): the change, with weights random all over."""
  given = TOKENS, SHAPE, STYLE, IMAGE, ORIGIN
  params = jax.jit(HEAD.init, static_argnums=2)(jax.random.key(0), *given)
  change = HEAD.apply(params, *given)
  assert change.shape == IMAGE.shape and not np.any(change)  # nothing at the start
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  shaken = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  params = jax.tree.unflatten(treedef, shaken)
  return jax.jit(
    lambda tokens, style, image, origin=ORIGIN: HEAD.apply(
      params, tokens, SHAPE, style, image, origin
    )
  )


def test_all_three_inputs_count(drawn):
  change = drawn(TOKENS, STYLE, IMAGE)
  for other in (
    (2 * TOKENS[:, ::-1], STYLE, IMAGE),
    (TOKENS, -STYLE, IMAGE),
    (TOKENS, STYLE, -IMAGE),
  ):
    assert np.abs(drawn(*other) - change).max() > 0.01


def test_equal_tokens_on_a_flat_image_draw_grain_and_no_pattern(drawn):
  flat = np.tile(TOKENS[:, :1], (1, N, 1)), STYLE, np.full_like(IMAGE, 0.3)
  found = np.stack([drawn(*flat, PATCH * np.array([i, 3 * i])) for i in range(200)])
  inner = found[:, :, 8:-8, 8:-8]  # at the edges the convolutions know less
  assert inner.std(0).min() > 0.01
  # In the mean over places no pixel of a patch is another's better.
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


def test_grain_belongs_to_places():
  whole = np.asarray(grain((64, 80), np.array([0, 0]), 1))
  part = grain((20, 30), np.array([7, 40]), 1)
  np.testing.assert_array_equal(part, whole[7:27, 40:70])
  assert abs(whole.mean()) < 0.05 and whole.std() == pytest.approx(1, abs=0.03)
  other = np.asarray(grain((64, 80), np.array([0, 0]), 2))
  shifted = np.roll(whole, 1, axis=1), np.roll(whole, 1, axis=0), whole.T[:64, :64]
  for x in (other, *shifted):
    assert abs(np.corrcoef(whole[: len(x), : x.shape[1]].ravel(), x.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_is_linear(factor):
  rows, columns = np.mgrid[:5, :4].astype(np.float32)
  found = enlarge((2 * rows - columns)[None, :, :, None], factor)[0, :, :, 0]
  places = [(np.arange(n * factor) + 0.5) / factor - 0.5 for n in (5, 4)]
  rows, columns = (np.clip(p, 0, n - 1) for p, n in zip(places, (5, 4), strict=True))
  np.testing.assert_allclose(found, 2 * rows[:, None] - columns, atol=1e-5)
  assert enlarge(IMAGE, factor).shape == (2, SIZE[0] * factor, SIZE[1] * factor, 3)


def test_a_patch_that_is_no_power_of_two():
  head = RetouchHead(patch=6, channels=16)
  image = normal(1, 12, 18, 3)
  given = TOKENS[:1, :6], (2, 3), STYLE[:1], image, ORIGIN
  assert head.apply(head.init(jax.random.key(0), *given), *given).shape == image.shape
