"""Sampling: the filters by hand, guidance's formula, keys per image, prefixes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models.gpt import GPT
from imgtx_jax.models.transformer import BlockConfig
from imgtx_jax.sampling.autoregressive import (
  filter_logits,
  guidance_scale,
  sample_codes,
  to_raster,
)
from imgtx_jax.sampling.options import SamplingOptions

SHAPE, N, V, CLASSES = (2, 4), 8, 12, 3
MODEL = GPT(
  codebook_size=V,
  classes=CLASSES,
  width=32,
  depth=2,
  shape=SHAPE,
  block=BlockConfig(num_heads=2, mlp_dim=64),
  order="spread",
  target_position=True,
)
LABELS = np.array([0, 1, 2, 0, 1, 2])
KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, N), int), LABELS[:1])
  draw = np.random.default_rng(0)
  return jax.tree.map(lambda s: draw.normal(0, 0.3, s.shape).astype(np.float32), shapes)["params"]


@functools.partial(jax.jit, static_argnames=("steps", "options"))
def sample(params, labels, keys, steps=N, options=SamplingOptions()):  # noqa: B008
  return sample_codes(MODEL, params, labels, keys, steps=steps, options=options)


@jax.jit
def forward(params, codes, labels):
  """Logits [B, N, V] and states of codes [B, N] in the GPT's order."""
  raster, _ = to_raster(codes, MODEL.code_order(), N)
  return MODEL.apply({"params": params}, raster, labels)


# -- Filters ---------------------------------------------------------------------------------------

SHARES = np.array([[0.4, 0.1, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], np.float32)


def left_in(**options):
  """Shares after the filters, rounded."""
  filtered = filter_logits(np.log(SHARES), SamplingOptions(**options))
  return np.asarray(jax.nn.softmax(filtered)).round(4).tolist()


def test_all_codes_stay_in_by_default():
  np.testing.assert_allclose(left_in(), SHARES, atol=1e-4)


def test_top_k():
  assert left_in(top_k=1)[0] == [1.0, 0.0, 0.0, 0.0]
  np.testing.assert_allclose(left_in(top_k=2)[0], [4 / 7, 0.0, 0.0, 3 / 7], atol=1e-4)
  np.testing.assert_allclose(left_in(top_k=4), SHARES, atol=1e-4)
  np.testing.assert_allclose(left_in(top_k=9), SHARES, atol=1e-4)


def test_top_p():
  assert left_in(top_p=0.0)[0] == [1.0, 0.0, 0.0, 0.0]
  assert left_in(top_p=0.39)[0] == [1.0, 0.0, 0.0, 0.0]
  np.testing.assert_allclose(left_in(top_p=0.5)[0], [4 / 7, 0.0, 0.0, 3 / 7], atol=1e-4)
  np.testing.assert_allclose(left_in(top_p=0.8)[0], [4 / 9, 0.0, 2 / 9, 3 / 9], atol=1e-4)
  np.testing.assert_allclose(left_in(top_p=0.95), SHARES, atol=1e-4)


def test_temperature_comes_before_top_p():
  sharp = SHARES[0] ** 2 / np.sum(SHARES[0] ** 2)  # .533 .033 .133 .3
  np.testing.assert_allclose(left_in(temperature=0.5)[0], sharp, atol=1e-4)
  assert left_in(temperature=0.5, top_p=0.5)[0] == [1.0, 0.0, 0.0, 0.0]


def test_top_k_and_top_p_together():
  # Of the two that top-k leaves, the first holds 4/7 > .5.
  assert left_in(top_k=2, top_p=0.5)[0] == [1.0, 0.0, 0.0, 0.0]


# -- Guidance --------------------------------------------------------------------------------------


def scales(**options):
  """The scale at each of 5 codes, by hand beside it in the tests."""
  options = SamplingOptions(cfg_scale=3.0, **options)
  return [float(guidance_scale(options, t, 5)) for t in range(5)]


def test_guidance_over_the_codes():
  assert scales() == [3.0] * 5
  assert scales(guidance="interval", cfg_start=0.2, cfg_stop=0.6) == [1.0, 3.0, 3.0, 1.0, 1.0]
  assert scales(guidance="linear") == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])
  # 1 + 2 (1 − cos(π (t/4)²)) / 2
  cosine = [1.0, 2 - np.cos(np.pi / 16), 2 - np.cos(np.pi / 4), 2 - np.cos(9 * np.pi / 16), 3.0]
  assert scales(guidance="power-cosine", cfg_power=2.0) == pytest.approx(cosine, abs=1e-5)
  with pytest.raises(ValueError, match="unknown guidance 'cubic'"):
    scales(guidance="cubic")


def test_guided_for_an_interval_only(params):
  """Greedy codes in a window of guidance: each is the choice of its own formula."""
  options = SamplingOptions(
    cfg_scale=4.0, guidance="interval", cfg_start=0.25, cfg_stop=0.5, temperature=0.0
  )
  codes, _ = sample(params, LABELS, KEYS, options=options)
  conditional, _ = forward(params, codes, LABELS)
  free, _ = forward(params, codes, np.full(6, CLASSES))
  scale = np.array([1, 1, 4, 4, 1, 1, 1, 1])[:, None]
  np.testing.assert_array_equal(codes, np.argmax(free + scale * (conditional - free), axis=-1))


# -- Sampling --------------------------------------------------------------------------------------


def test_an_image_depends_on_its_own_key_and_label(params):
  codes, states = sample(params, LABELS, KEYS)
  assert codes.shape == (6, N) and codes.dtype == jnp.int32
  assert states.shape == (6, N, 32)
  pick = np.array([4, 0, 5, 0, 4, 4])
  again, again_states = sample(params, LABELS[pick], KEYS[pick])
  np.testing.assert_array_equal(again, codes[pick])
  np.testing.assert_allclose(again_states, states[pick], atol=1e-5)
  other, _ = sample(params, np.zeros(6, int), jax.random.split(jax.random.key(1), 6))
  assert np.mean(other == codes) < 0.8
  assert len(np.unique(codes, axis=0)) == 6


def test_steps_draw_afresh(params):
  """One key serves all positions, each with a draw of its own."""
  flat = jax.tree.map(np.zeros_like, params)  # every code equally likely everywhere
  codes, _ = sample(flat, LABELS, KEYS)
  assert all(len(np.unique(row)) > 2 for row in codes)


def test_a_prefix_is_the_beginning_of_the_whole(params):
  codes, states = sample(params, LABELS, KEYS)
  prefix, prefix_states = sample(params, LABELS, KEYS, steps=3)
  np.testing.assert_array_equal(prefix, codes[:, :3])
  np.testing.assert_allclose(prefix_states, states[:, :3], atol=1e-5)


def test_given_codes_are_taken_as_they_are(params):
  given = np.array([[1, 2, 3]] * 6, np.int32)
  run = functools.partial(sample_codes, MODEL, steps=N, options=SamplingOptions(temperature=0.0))
  codes, states = jax.jit(run)(params, LABELS, KEYS, given=given)
  np.testing.assert_array_equal(codes[:, :3], given)
  logits, expected = forward(params, codes, LABELS)
  np.testing.assert_array_equal(codes[:, 3:], np.argmax(logits, axis=-1)[:, 3:])
  np.testing.assert_allclose(states, expected, atol=1e-4)


def test_guidance_is_its_formula(params):
  codes, states = sample(
    params, LABELS, KEYS, options=SamplingOptions(cfg_scale=3.0, temperature=0.0)
  )
  conditional, expected = forward(params, codes, LABELS)
  free, _ = forward(params, codes, np.full(6, CLASSES))
  np.testing.assert_array_equal(codes, np.argmax(free + 3.0 * (conditional - free), axis=-1))
  assert np.any(codes != np.argmax(conditional, axis=-1))
  # The condition vectors are those of the conditional branch.
  np.testing.assert_allclose(states, expected, atol=1e-4)


def test_codes_are_drawn_as_often_as_the_model_says(params):
  count = 8192
  labels, keys = np.full(count, 1), jax.random.split(jax.random.key(3), count)
  options = SamplingOptions(temperature=2.0, cfg_scale=1.5, top_k=6)
  codes, _ = sample(params, labels, keys, steps=1, options=options)
  shares = np.bincount(np.ravel(codes), minlength=V) / count
  logits, _ = forward(params, np.zeros((6, N), np.int32), np.array([1, CLASSES] * 3))
  guided = logits[1:2, 0] + 1.5 * (logits[0:1, 0] - logits[1:2, 0])
  expected = np.asarray(jax.nn.softmax(filter_logits(guided, options)))[0]
  assert np.sum(expected > 0) == 6
  np.testing.assert_allclose(shares, expected, atol=0.02)


def test_to_raster_puts_codes_in_their_places():
  order = MODEL.code_order()
  codes = np.array([[5, 6, 7], [8, 9, 10]], np.int32)
  raster, known = to_raster(codes, order, N)
  assert raster.dtype == jnp.int32 and known.sum() == 3
  np.testing.assert_array_equal(raster[:, order[:3]], codes)
  assert np.all(known[order[:3]]) and not np.any(raster[:, ~np.asarray(known)])
  none, unknown = to_raster(codes[:, :0], order, N)
  assert not np.any(unknown) and none.shape == (2, N)
