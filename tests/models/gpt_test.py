"""The GPT: its order of codes, causality, cached decoding, and parity with LlamaGen's."""

import functools

import jax
import numpy as np
import pytest

from imgtx_jax.convert import llamagen
from imgtx_jax.models import layers, transformer
from imgtx_jax.models.gpt import GPT, code_order
from imgtx_jax.models.transformer import BlockConfig
from imgtx_jax.pretrained import state_dict
from imgtx_jax.sampling import autoregressive
from imgtx_jax.sampling.options import SamplingOptions

B, SHAPE, N, V, CLASSES, D, HIDDEN, LAYERS = 3, (3, 4), 12, 20, 5, 32, 64, 2
BLOCK = BlockConfig(num_heads=2, mlp_dim=HIDDEN)
BASE = dict(codebook_size=V, classes=CLASSES, width=D, depth=LAYERS, shape=SHAPE, block=BLOCK)
CODES = np.random.default_rng(0).integers(0, V, (B, N))
LABELS = np.array([0, 3, CLASSES])
KINDS = [(order, target) for order in ("raster", "spread") for target in (False, True)]


@functools.cache
def make(order, target_position):
  return GPT(**BASE, order=order, target_position=target_position)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, codes, labels):
  return model.apply({"params": params}, codes, labels)


@pytest.fixture(scope="module")
def params(random_params):
  """Parameters of any kind of GPT: a missing target_position is not read."""
  return random_params(make("spread", True), CODES, LABELS)


def of_kind(params, target_position):
  return {k: v for k, v in params.items() if target_position or k != "target_position"}


# -- Order -----------------------------------------------------------------------------------------

GRIDS = [(1, 1), (1, 5), (4, 4), (5, 5), (6, 6), (8, 8), (16, 16), (3, 7), (12, 5), (24, 24)]


@pytest.mark.parametrize("shape", GRIDS, ids=str)
@pytest.mark.parametrize("order", ["raster", "spread"])
def test_order_is_a_permutation(order, shape):
  places = code_order(order, shape)
  assert sorted(places) == list(range(shape[0] * shape[1]))
  if order == "raster":
    assert list(places) == sorted(places)


@pytest.mark.parametrize("shape, first", [((8, 8), 4), ((8, 8), 16), ((16, 16), 4), ((16, 16), 16)])
def test_a_short_prefix_of_spread_covers_all_quadrants_evenly(shape, first):
  rows, columns = np.divmod(code_order("spread", shape)[:first], shape[1])
  quadrants = 2 * (rows >= shape[0] // 2) + (columns >= shape[1] // 2)
  np.testing.assert_array_equal(np.bincount(quadrants, minlength=4), first // 4)


@pytest.mark.parametrize("first, reach", [(1, 10), (4, 5), (16, 2), (64, 1)])
def test_spread_leaves_small_holes(first, reach):
  """How far (in rows or columns) a place of a 16×16 grid is from the nearest known one, at most."""
  known = np.stack(np.divmod(code_order("spread", (16, 16))[:first], 16), axis=-1)
  places = layers.grid_coords(16, 16)
  assert np.abs(places[:, None] - known).max(axis=-1).min(axis=1).max() <= reach


def test_unknown_order():
  with pytest.raises(ValueError, match="zigzag"):
    code_order("zigzag", SHAPE)


# -- Shapes, counts, gradients ---------------------------------------------------------------------


@pytest.mark.parametrize("target_position", [False, True])
def test_shapes_and_parameter_count(target_position, num_params):
  model = make("spread", target_position)
  (logits, states), variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), CODES, LABELS
  )
  assert logits.shape == (B, N, V) and logits.dtype == np.float32
  assert states.shape == (B, N, D)
  layer = 4 * D * D + 3 * D * HIDDEN + 2 * D
  expected = LAYERS * layer + (CLASSES + 1) * D + V * D + D + D * V + target_position * N * D
  assert num_params(variables["params"]) == expected


def test_every_parameter_has_a_gradient(params, differentiate, dead):
  logits = lambda p: forward(make("spread", True), p, CODES, LABELS)[0]  # noqa: E731
  assert dead(differentiate(logits, params)[1]) == []


def test_it_starts_by_guessing_evenly():
  init = lambda key: make("raster", False).init(key, CODES, LABELS)["params"]  # noqa: E731
  kernel = jax.jit(lambda key: init(key)["logits"]["kernel"])(jax.random.key(0))
  assert kernel.shape == (D, V) and not np.any(kernel)


def test_bfloat16_keeps_float32_logits():
  model = make("raster", False).clone(dtype="bfloat16")
  (logits, states), variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), CODES, LABELS
  )
  assert logits.dtype == np.float32 and states.dtype == "bfloat16"
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


# -- What a state has seen -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["raster", "spread"])
def test_a_code_changes_no_earlier_logit_and_all_later_ones(order, params):
  model = make(order, True)
  logits, states = forward(model, params, CODES, LABELS)
  for t in (0, 4, N - 1):
    other = CODES.copy()
    place = code_order(order, SHAPE)[t]
    other[:, place] = (other[:, place] + 1) % V
    changed, changed_states = forward(model, params, other, LABELS)
    # Codes are raster places; logit t predicts code t, so code t speaks from logit t + 1 on.
    np.testing.assert_array_equal(changed[:, : t + 1], logits[:, : t + 1])
    np.testing.assert_array_equal(changed_states[:, : t + 1], states[:, : t + 1])
    assert np.all(np.abs(changed - logits)[:, t + 1 :].max(axis=(0, 2)) > 1e-4)
  relabelled, _ = forward(model, params, CODES, (LABELS + 1) % (CLASSES + 1))
  assert np.all(np.abs(relabelled - logits).max(axis=-1) > 1e-4)


def test_codes_keep_their_own_place(params):
  """RoPE follows the grid: the same sequence in another order is another input."""
  spread, raster = make("spread", False), make("raster", False)
  sequence = np.empty_like(CODES)
  sequence[:, code_order("raster", SHAPE)] = CODES[:, code_order("spread", SHAPE)]
  params = of_kind(params, False)
  ours, _ = forward(spread, params, CODES, LABELS)
  theirs, _ = forward(raster, params, sequence, LABELS)
  np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=1e-5)
  assert np.abs(ours[:, 2:] - theirs[:, 2:]).max() > 0.01


def test_every_example_may_have_an_order_of_its_own(params):
  """Given the orders "spread" and "raster" as arguments, one GPT answers as those two would."""
  codes, labels = np.repeat(CODES[:1], 2, axis=0), np.repeat(LABELS[:1], 2)
  orders = np.stack([code_order("spread", SHAPE), code_order("raster", SHAPE)])
  model = make("raster", True)
  run = jax.jit(lambda p: model.apply({"params": p}, codes, labels, orders=orders))
  logits, states = run(params)
  for row, order in enumerate(("spread", "raster")):
    alone, alone_states = forward(make(order, True), params, codes, labels)
    np.testing.assert_allclose(logits[row], alone[row], atol=1e-5)
    np.testing.assert_allclose(states[row], alone_states[row], atol=1e-5)
  assert np.abs(logits[0] - logits[1]).max() > 0.01


# -- Decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order, target_position", KINDS)
def test_cached_decoding_is_the_full_forward(order, target_position, params):
  model, params = make(order, target_position), of_kind(params, target_position)
  logits, states = forward(model, params, CODES, LABELS)
  sequence = CODES[:, code_order(order, SHAPE)].T
  before = np.concatenate([np.full((1, B), V - 1), sequence[:-1]])  # the first is not read
  flat, unrolled = transformer.unstack_layers(params), model.clone(scan=False)

  @jax.jit
  def run(flat):
    def step(caches, inputs):
      position, codes = inputs
      logits, states, caches = unrolled.apply(
        {"params": flat}, codes[:, None], LABELS, caches=caches, position=position
      )
      return caches, (logits[:, 0], states[:, 0])

    return jax.lax.scan(step, model.init_cache(B, N), (np.arange(N), before))[1]

  stepwise, stepwise_states = run(flat)
  np.testing.assert_allclose(stepwise.swapaxes(0, 1), logits, atol=1e-4)
  np.testing.assert_allclose(stepwise_states.swapaxes(0, 1), states, atol=1e-4)


@pytest.mark.parametrize("order, target_position", KINDS[::3])
def test_greedy_samples_are_the_full_forwards_choice(order, target_position, params):
  model, params = make(order, target_position), of_kind(params, target_position)
  greedy = SamplingOptions(temperature=0.0)
  keys = jax.random.split(jax.random.key(0), B)

  @jax.jit
  def sample(params):
    return autoregressive.sample_codes(model, params, LABELS, keys, steps=N, options=greedy)

  codes, states = sample(params)
  raster, known = autoregressive.to_raster(codes, code_order(order, SHAPE), N)
  assert np.all(known) and len(np.unique(codes)) > 3
  logits, full_states = forward(model, params, raster, LABELS)
  # With the choices as input, each position's choice again: step by step, by causality.
  np.testing.assert_array_equal(codes, np.argmax(logits, axis=-1))
  np.testing.assert_allclose(states, full_states, atol=1e-4)


# -- Parity with LlamaGen --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(parity):
  """(manifest, recorded arrays, weights) of the reference GPT."""
  return parity("gpt_tiny")


@pytest.fixture(scope="module")
def reference(recorded):
  """(our GPT of that size, its parameters)."""
  manifest, _, weights = recorded
  args = manifest["args"]
  weights = state_dict.in_memory(weights)
  found = llamagen.find_gpt(weights, num_heads=args["n_head"])
  side = int(args["block_size"] ** 0.5)
  model = GPT(
    codebook_size=found.codebook_size,
    classes=found.classes,
    width=found.width,
    depth=found.depth,
    shape=(side, side),
    block=BlockConfig(found.num_heads, found.mlp_dim),
  )
  assert found.mlp_dim == layers.default_mlp_dim(args["dim"])
  return model, llamagen.gpt_params(weights, model)


def test_logits_are_llamagens(recorded, reference):
  _, arrays, _ = recorded
  logits, _ = forward(*reference, arrays["codes"], arrays["labels"])
  np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)


@pytest.mark.parametrize("guided", [False, True])
def test_greedy_codes_are_llamagens(guided, recorded, reference):
  manifest, arrays, _ = recorded
  model, params = reference
  expected = arrays["greedy_cfg" if guided else "greedy_no_cfg"]
  options = SamplingOptions(
    temperature=0.0, cfg_scale=manifest["greedy_cfg_scale"] if guided else 1.0
  )
  labels = arrays["labels"][:2]
  keys = jax.random.split(jax.random.key(0), 2)
  steps = expected.shape[1]
  codes, _ = jax.jit(
    lambda p: autoregressive.sample_codes(model, p, labels, keys, steps=steps, options=options)
  )(params)
  np.testing.assert_array_equal(codes, expected)
