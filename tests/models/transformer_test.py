"""The block: rotary positions, masks, branches that start as the identity, scan and remat."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models import layers, transformer
from imgtx_jax.models.transformer import BlockConfig, Context, Transformer

B, N, M, D, H, HIDDEN, L, S = 2, 6, 5, 32, 2, 64, 2, 8
K = D // H
FULL = dict(memory=True, modulated=True, qk_norm=True, layer_scale=0.1)


def make_model(**options):
  """A Transformer of L layers with these options of its blocks."""
  return Transformer(L, BlockConfig(H, HIDDEN, **options))


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def make_context(**changes):
  """Everything a layer may read."""
  values = dict(
    rope=layers.rope_table(layers.grid_coords(2, 3), K),
    memory=normal(B, M, D, seed=1),
    memory_rope=layers.rope_table(layers.grid_coords(1, M), K),
    modulation=normal(B, S, seed=2),
  )
  return Context(**values | changes)


X = normal(B, N, D)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x, context):
  return model.apply({"params": params}, x, context)[0]


# -- Rotary positions ------------------------------------------------------------------------------


def test_rope_turns_complex_numbers():
  coords = np.array([[0, 0], [3, 1], [7, 12]])
  x = normal(B, 3, H, K)
  turned = layers.apply_rope(x, layers.rope_table(coords, K))
  pairs = x[..., 0::2] + 1j * x[..., 1::2]  # K / 2 complex numbers a head
  expected = np.empty_like(pairs)
  for n, (row, column) in enumerate(coords):
    for j in range(K // 2):
      quarter = j % (K // 4)
      position = row if j < K // 4 else column
      rate = 10000.0 ** (-quarter / (K // 4))
      expected[:, n, :, j] = pairs[:, n, :, j] * np.exp(1j * position * rate)
  np.testing.assert_allclose(turned[..., 0::2], expected.real, atol=1e-5)
  np.testing.assert_allclose(turned[..., 1::2], expected.imag, atol=1e-5)


def test_rope_scores_depend_on_relative_position_alone():
  rng = np.random.default_rng(0)
  queries, keys = rng.integers(0, 20, (2, 8, 2))
  q, k = normal(1, 8, 1, K), normal(1, 8, 1, K, seed=1)

  def scores(shift):
    turn = lambda x, at: layers.apply_rope(x, layers.rope_table(at + shift, K))  # noqa: E731
    return np.einsum("bnhk,bnhk->n", turn(q, queries), turn(k, keys))

  np.testing.assert_allclose(scores([0, 0]), scores([5, 11]), atol=1e-4)
  moved = np.einsum(
    "bnhk,bnhk->n",
    layers.apply_rope(q, layers.rope_table(queries + [0, 1], K)),
    layers.apply_rope(k, layers.rope_table(keys, K)),
  )
  assert np.abs(moved - scores([0, 0])).max() > 0.1


def test_rope_needs_a_head_width_of_fours():
  with pytest.raises(ValueError, match="divisible by 4, not 10"):
    layers.rope_table(np.zeros((1, 2)), 10)


# -- Parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, *({k: v} for k, v in FULL.items()), FULL], ids=str)
def test_parameter_counts(options, num_params):
  model = make_model(**options)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, make_context())["params"]
  layer = 4 * D * D + 3 * D * HIDDEN + 2 * D
  layer += options.get("memory", False) * (4 * D * D + 2 * D)  # its norm and its gate
  layer += options.get("modulated", False) * (S * 6 * D + 6 * D)
  layer += options.get("qk_norm", False) * 2 * K * (2 if options.get("memory") else 1)
  layer += bool(options.get("layer_scale")) * 2 * D
  assert num_params(shapes) == L * layer
  assert all(leaf.shape[0] == L for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def initialised():
  """Parameters as they start, of layers with memory and modulation."""
  model = make_model(memory=True, modulated=True)
  return jax.jit(model.init)(jax.random.key(0), X, make_context())["params"]


def test_layers_are_initialised_apart(initialised):
  first, second = initialised["layers"]["block"]["attention"]["qkv"]["kernel"]
  assert np.abs(first - second).max() > 0.1


def test_default_mlp_dim():
  assert [layers.default_mlp_dim(w) for w in (96, 128, 768)] == [256, 352, 2048]


# -- Scan and remat --------------------------------------------------------------------------------


SCANNED = make_model(**FULL)


def run_scanned(params):
  return SCANNED.apply({"params": params}, X, make_context())[0]


def run_remat(params):
  return make_model(**FULL, remat="full").apply({"params": params}, X, make_context())[0]


@pytest.fixture(scope="module")
def scanned(random_params, differentiate):
  """Parameters, output and gradients of scanned layers with everything in them."""
  params = random_params(SCANNED, X, make_context())
  return params, *differentiate(run_scanned, params)


def test_every_parameter_has_a_gradient(scanned, dead):
  _, _, grads = scanned
  assert dead(grads) == []


def test_unrolled_layers_compute_what_scanned_ones_do(scanned):
  params, expected, _ = scanned
  flat = transformer.unstack_layers(params)
  y = apply(SCANNED.clone(scan=False), flat, X, make_context())
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_remat_computes_the_same(scanned, differentiate):
  params, expected, grads = scanned
  y = apply(make_model(**FULL, remat="dots"), params, X, make_context())
  np.testing.assert_allclose(y, expected, atol=1e-5)
  y, again = differentiate(run_remat, params)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, again, grads)


def test_layers_in_one_turn_of_the_scan_compute_the_same(scanned):
  params, expected, _ = scanned
  y = apply(make_model(**FULL, unroll=L), params, X, make_context())
  np.testing.assert_allclose(y, expected, atol=1e-5)


def saved_numbers(remat):
  """How many float32 numbers the backward pass keeps of the forward pass."""
  model = make_model(remat=remat)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, make_context())["params"]

  def forward(params, x):
    run = lambda p, x: model.apply({"params": p}, x, make_context())[0]  # noqa: E731
    return jax.vjp(run, params, x)

  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(forward, shapes, X)))


def test_remat_keeps_less():
  none, dots, full = (saved_numbers(remat) for remat in ("none", "dots", "full"))
  assert full < dots < none


def test_unstack_layers_names_each_layer():
  tree = {"net": {"layers": {"block": {"w": np.arange(6).reshape(3, 2)}}, "norm": np.ones(2)}}
  flat = transformer.unstack_layers(tree)["net"]
  assert sorted(flat) == ["layers_0", "layers_1", "layers_2", "norm"]
  np.testing.assert_array_equal(flat["layers_2"]["w"], [4, 5])


def test_caches_need_unrolled_layers():
  with pytest.raises(ValueError, match="scan=False"):
    make_model().init(jax.random.key(0), X, make_context(), caches=[])


# -- Masks -----------------------------------------------------------------------------------------


def test_masked_memory_has_no_influence(random_params):
  model = make_model(**FULL)
  params = random_params(model, X, make_context())
  mask = np.array([[True, True, True, False, False]] * B)
  context = make_context(memory_length=np.full(B, 3))
  y = apply(model, params, X, context)
  noise = np.where(mask[..., None], 0.0, normal(B, M, D, seed=4))
  np.testing.assert_array_equal(
    y, apply(model, params, X, context.replace(memory=context.memory + 9.0 * noise))
  )
  # As if the masked tokens were not there at all.
  kept = [0, 1, 2]
  shorter = make_context(memory=context.memory[:, kept], memory_rope=context.memory_rope[:, kept])
  np.testing.assert_allclose(y, apply(model, params, X, shorter), atol=1e-5)
  seen = np.where(mask[..., None], normal(B, M, D, seed=4), 0.0)
  assert np.abs(y - apply(model, params, X, context.replace(memory=seen))).max() > 0.01


def test_masked_tokens_have_no_influence_on_the_others(random_params):
  model, mask = make_model(), np.array([[True, False, True, True, False, True]] * B)
  context = make_context(token_mask=mask)
  params = random_params(model, X, context)
  other = np.where(mask[..., None], X, normal(B, N, D, seed=4))
  y, z = apply(model, params, X, context), apply(model, params, other, context)
  np.testing.assert_array_equal(y[mask], z[mask])
  unmasked = apply(model, params, other, make_context())
  assert np.abs(y[mask] - unmasked[mask]).max() > 0.01


def test_causal_layers_do_not_look_ahead(random_params):
  model = make_model(causal=True)
  params = random_params(model, X, make_context())
  other = X.copy()
  other[:, 3] = 1.0
  y, z = apply(model, params, X, make_context()), apply(model, params, other, make_context())
  np.testing.assert_array_equal(y[:, :3], z[:, :3])
  assert np.all(np.abs(y[:, 3:] - z[:, 3:]).max(axis=(0, 2)) > 1e-3)


# -- Memory and modulation -------------------------------------------------------------------------


def test_memory_and_modulation_start_as_the_identity(random_params, initialised):
  plain, full = make_model(), make_model(memory=True, modulated=True)
  params = random_params(plain, X, make_context())
  expected = apply(plain, params, X, make_context())
  gained = initialised["layers"]["block"] | params["layers"]["block"]
  y = apply(full, {"layers": {"block": gained}}, X, make_context())
  np.testing.assert_allclose(y, expected, atol=1e-6)
  for name in ("cross_gate", "modulation"):
    opened = gained | {name: jax.tree.map(lambda a: a + 0.1, gained[name])}
    y = apply(full, {"layers": {"block": opened}}, X, make_context())
    assert np.abs(y - expected).max() > 0.01, name


def test_memory_is_placed_relative_to_the_tokens(random_params):
  model = make_model(memory=True)
  params = random_params(model, X, make_context())
  y = apply(model, params, X, make_context())

  def at(tokens, memory):
    return apply(
      model,
      params,
      X,
      make_context(
        rope=layers.rope_table(layers.grid_coords(2, 3) + tokens, K),
        memory_rope=layers.rope_table(layers.grid_coords(1, M) + memory, K),
      ),
    )

  np.testing.assert_allclose(at([4, 7], [4, 7]), y, atol=1e-4)
  assert np.abs(at([0, 0], [0, 2]) - y).max() > 0.01


def test_memory_without_places_is_a_set(random_params):
  model = make_model(memory=True)
  params = random_params(model, X, make_context())
  context = make_context(memory_rope=None)
  y = apply(model, params, X, context)
  turned = apply(model, params, X, context.replace(memory=context.memory[:, ::-1]))
  np.testing.assert_allclose(y, turned, atol=1e-5)


def test_closed_modulation_gates_leave_nothing_of_a_layer(random_params):
  model = make_model(modulated=True)
  params = random_params(model, X, make_context())
  table = params["layers"]["block"]["modulation"]
  bias = normal(L, 6, D)
  bias[:, [2, 5]] = -1.0
  table["kernel"], table["bias"] = np.zeros_like(table["kernel"]), bias.reshape(L, -1)
  np.testing.assert_allclose(apply(model, params, X, make_context()), X, atol=1e-6)


def test_attention_weights_are_left_to_look_at(random_params):
  model, mask = make_model(), np.array([[True, False, True, True, True, True]] * B)
  context = make_context(token_mask=mask)
  params = random_params(model, X, context)
  run = jax.jit(lambda p: model.apply({"params": p}, X, context, mutable=["intermediates"]))
  y, seen = run(params)
  (weights,) = jax.tree.leaves(seen)
  assert weights.shape == (L, B, H, N, N)
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
  assert np.all(weights[..., 1] == 0.0)
  np.testing.assert_allclose(y[0], apply(model, params, X, context), atol=1e-5)


# -- Dropout ---------------------------------------------------------------------------------------


def test_dropout_depends_on_the_example_not_on_its_batch(random_params):
  model, context = make_model(dropout=0.3), make_context()
  params = random_params(model, X, context)

  @jax.jit
  def dropped(x, index):
    rngs = {"dropout": jax.random.key(5)}
    return model.apply({"params": params}, x, context.replace(example_index=index), rngs=rngs)[0]

  y = dropped(X, np.arange(B))
  np.testing.assert_allclose(dropped(X[::-1], np.arange(B)[::-1])[::-1], y, atol=1e-5)
  same = dropped(np.stack([X[0]] * B), np.arange(B))
  assert np.abs(same[0] - same[1]).max() > 0.01
  without = apply(model, params, X, context)
  assert np.abs(y - without).max() > 0.01
  np.testing.assert_allclose(without, apply(make_model(), params, X, context), atol=1e-6)


DROPPED = transformer.Block(BlockConfig(H, HIDDEN, dropout=0.3))
MANY = normal(16, 32, D)


@jax.jit
def with_and_without_dropout(params):
  run = functools.partial(
    DROPPED.apply, {"params": params}, MANY, Context(example_index=np.arange(16))
  )
  return run(rngs={"dropout": jax.random.key(0)})[0], run()[0]


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_each_branch_is_dropped_once_at_the_rate(branch, random_params):
  params = random_params(DROPPED, MANY, Context())
  closed = params["mlp"]["w2"] if branch == "attention" else params["attention"]["out"]
  closed["kernel"] = 0.0 * closed["kernel"]
  y, kept = with_and_without_dropout(params)
  dropped = np.asarray(y == MANY)
  assert abs(dropped.mean() - 0.3) < 0.01
  np.testing.assert_allclose((y - MANY)[~dropped], (kept - MANY)[~dropped] / 0.7, atol=1e-4)


def test_paths_are_dropped_by_depth(random_params):
  """The first of two layers never, the second at the rate: whole branches, for single examples."""
  model = make_model(drop_path=0.4)
  many = np.repeat(X[:1], 512, axis=0)
  context = Context(example_index=np.arange(512))
  params = random_params(model, X, Context())
  block = params["layers"]["block"]
  block["mlp"]["w2"]["kernel"] *= 0.0  # leaves the attention branch of each layer

  @jax.jit
  def run(params):
    rngs = {"dropout": jax.random.key(0)}
    return model.apply({"params": params}, many, context, rngs=rngs)[0]

  y = np.asarray(run(params))
  first = jax.tree.map(lambda a: a.copy(), block)
  first["attention"]["out"]["kernel"][1] = 0.0
  after_first = np.asarray(apply(make_model(), {"layers": {"block": first}}, X, Context()))
  dropped = np.abs(y - after_first[0]).max(axis=(1, 2)) < 1e-4
  assert abs(dropped.mean() - 0.4) < 0.07
  whole = np.asarray(apply(make_model(), params, X, Context()))[0]
  kept = after_first[0] + (whole - after_first[0]) / 0.6
  np.testing.assert_allclose(y[~dropped], np.broadcast_to(kept, y[~dropped].shape), atol=1e-4)


# -- Patches ---------------------------------------------------------------------------------------


def test_patches_are_in_raster_order_and_go_back():
  images = normal(B, 4, 6, 3)
  patches = layers.patchify(images, 2)
  assert patches.shape == (B, 6, 12)
  for n, (i, j) in enumerate(layers.grid_coords(2, 3)):
    patch = images[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(B, -1)
    np.testing.assert_array_equal(patches[:, n], patch)
  np.testing.assert_array_equal(layers.unpatchify(patches, 2, (2, 3)), images)


def test_a_wide_linear_map_has_the_gradient_of_the_product():
  """It takes another way on a CPU; see layers.Linear."""
  layer = layers.Linear(2048)
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  params = layer.init(jax.random.key(1), x)
  ours = jax.grad(lambda p, x: jnp.sum(jnp.sin(layer.apply(p, x))), argnums=(0, 1))(params, x)
  plain = jax.grad(lambda p, x: jnp.sum(jnp.sin(x @ p["params"]["kernel"])), argnums=(0, 1))(
    params, x
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, plain)


def test_a_wide_linear_map_is_lowered_for_the_platform_that_is_asked_for():
  """Only a CPU transposes in memory, also where the program is made on another machine."""
  layer, x = layers.Linear(2048), jax.ShapeDtypeStruct((4, 8), jnp.float32)
  params = jax.eval_shape(layer.init, jax.random.key(0), x)
  traced = jax.jit(jax.grad(lambda p, x: jnp.sum(layer.apply(p, x) ** 2))).trace(params, x)
  for platform, transposes in (("cpu", True), ("tpu", False), ("cuda", False)):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == transposes, platform
  assert "conditional" not in traced.lower().compile().as_text()  # nothing is left to decide
