"""The block: rotary positions, masks, branches that start as the identity, scan and remat."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models import transformer
from imgtx_jax.models.transformer import Context, Transformer

B, N, M, D, H, HIDDEN, L, S = 2, 6, 5, 32, 2, 64, 2, 8
K = D // H
BASE = dict(layers=L, heads=H, hidden=HIDDEN)
FULL = dict(memory=True, modulated=True, qk_norm=True, layer_scale=0.1)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def make_context(**changes):
  """Everything a layer may read."""
  values = dict(
    rope=transformer.rope_table(transformer.grid_coords(2, 3), K),
    memory=normal(B, M, D, seed=1),
    memory_rope=transformer.rope_table(transformer.grid_coords(1, M), K),
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
  turned = transformer.apply_rope(x, transformer.rope_table(coords, K))
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
    turn = lambda x, at: transformer.apply_rope(x, transformer.rope_table(at + shift, K))  # noqa: E731
    return np.einsum("bnhk,bnhk->n", turn(q, queries), turn(k, keys))

  np.testing.assert_allclose(scores([0, 0]), scores([5, 11]), atol=1e-4)
  moved = np.einsum(
    "bnhk,bnhk->n",
    transformer.apply_rope(q, transformer.rope_table(queries + [0, 1], K)),
    transformer.apply_rope(k, transformer.rope_table(keys, K)),
  )
  assert np.abs(moved - scores([0, 0])).max() > 0.1


def test_rope_needs_a_head_width_of_fours():
  with pytest.raises(ValueError, match="divisible by 4, not 10"):
    transformer.rope_table(np.zeros((1, 2)), 10)


# -- Parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, *({k: v} for k, v in FULL.items()), FULL], ids=str)
def test_parameter_counts(options, num_params):
  model = Transformer(**BASE | options)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, make_context())["params"]
  layer = 4 * D * D + 3 * D * HIDDEN + 2 * D
  layer += options.get("memory", False) * (4 * D * D + 2 * D)  # its norm and its gate
  layer += options.get("modulated", False) * (S * 6 * D + 6 * D)
  layer += options.get("qk_norm", False) * 2 * K * (2 if options.get("memory") else 1)
  layer += bool(options.get("layer_scale")) * 2 * D
  assert num_params(shapes) == L * layer
  assert all(leaf.shape[0] == L for leaf in jax.tree.leaves(shapes))


def test_every_parameter_has_a_gradient(random_params, without_gradient):
  model, context = Transformer(**BASE | FULL), make_context()
  params = random_params(model, X, context)
  assert without_gradient(lambda p: apply(model, p, X, context), params) == []


@pytest.fixture(scope="module")
def initialised():
  """Parameters as they start, of layers with memory and modulation."""
  model = Transformer(**BASE, memory=True, modulated=True)
  return jax.jit(model.init)(jax.random.key(0), X, make_context())["params"]


def test_layers_are_initialised_apart(initialised):
  first, second = initialised["layers"]["block"]["attention"]["qkv"]["kernel"]
  assert np.abs(first - second).max() > 0.1


def test_default_hidden():
  assert [transformer.default_hidden(w) for w in (96, 128, 768)] == [256, 352, 2048]


# -- Scan and remat --------------------------------------------------------------------------------


def value_and_grads(model, params):
  def total(params):
    y, _ = model.apply({"params": params}, X, make_context())
    return jnp.sum(y * normal(B, N, D, seed=3)), y

  (_, y), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
  return y, grads


def test_scanned_unrolled_and_remat_are_one(random_params):
  scanned = Transformer(**BASE | FULL)
  params = random_params(scanned, X, make_context())
  expected, grads = value_and_grads(scanned, params)
  unrolled = Transformer(**BASE | FULL, scan=False)
  y = apply(unrolled, transformer.unstack_layers(params), X, make_context())
  np.testing.assert_allclose(y, expected, atol=1e-5)
  y = apply(Transformer(**BASE | FULL, remat="dots"), params, X, make_context())
  np.testing.assert_allclose(y, expected, atol=1e-5)
  y, remat_grads = value_and_grads(Transformer(**BASE | FULL, remat="full"), params)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), remat_grads, grads
  )


def saved_numbers(remat):
  """How many float32 numbers the backward pass keeps of the forward pass."""
  model = Transformer(**BASE, remat=remat)
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
    Transformer(**BASE).init(jax.random.key(0), X, make_context(), caches=[])


# -- Masks -----------------------------------------------------------------------------------------


def test_masked_memory_has_no_influence(random_params):
  model = Transformer(**BASE | FULL)
  params = random_params(model, X, make_context())
  mask = np.array([[True, True, False, True, False]] * B)
  context = make_context(memory_mask=mask)
  y = apply(model, params, X, context)
  noise = np.where(mask[..., None], 0.0, normal(B, M, D, seed=4))
  np.testing.assert_array_equal(
    y, apply(model, params, X, context.replace(memory=context.memory + 9.0 * noise))
  )
  # As if the masked tokens were not there at all.
  kept = [0, 1, 3]
  shorter = make_context(memory=context.memory[:, kept], memory_rope=context.memory_rope[:, kept])
  np.testing.assert_allclose(y, apply(model, params, X, shorter), atol=1e-5)
  seen = np.where(mask[..., None], normal(B, M, D, seed=4), 0.0)
  assert np.abs(y - apply(model, params, X, context.replace(memory=seen))).max() > 0.01


def test_masked_tokens_have_no_influence_on_the_others(random_params):
  model, mask = Transformer(**BASE), np.array([[True, False, True, True, False, True]] * B)
  context = make_context(token_mask=mask)
  params = random_params(model, X, context)
  other = np.where(mask[..., None], X, normal(B, N, D, seed=4))
  y, z = apply(model, params, X, context), apply(model, params, other, context)
  np.testing.assert_array_equal(y[mask], z[mask])
  unmasked = apply(model, params, other, make_context())
  assert np.abs(y[mask] - unmasked[mask]).max() > 0.01


def test_causal_layers_do_not_look_ahead(random_params):
  model = Transformer(**BASE, causal=True)
  params = random_params(model, X, make_context())
  other = X.copy()
  other[:, 3] = 1.0
  y, z = apply(model, params, X, make_context()), apply(model, params, other, make_context())
  np.testing.assert_array_equal(y[:, :3], z[:, :3])
  assert np.all(np.abs(y[:, 3:] - z[:, 3:]).max(axis=(0, 2)) > 1e-3)


# -- Memory and modulation -------------------------------------------------------------------------


def test_memory_and_modulation_start_as_the_identity(random_params, initialised):
  plain, full = Transformer(**BASE), Transformer(**BASE, memory=True, modulated=True)
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
  model = Transformer(**BASE, memory=True)
  params = random_params(model, X, make_context())
  y = apply(model, params, X, make_context())

  def at(tokens, memory):
    return apply(
      model,
      params,
      X,
      make_context(
        rope=transformer.rope_table(transformer.grid_coords(2, 3) + tokens, K),
        memory_rope=transformer.rope_table(transformer.grid_coords(1, M) + memory, K),
      ),
    )

  np.testing.assert_allclose(at([4, 7], [4, 7]), y, atol=1e-4)
  assert np.abs(at([0, 0], [0, 2]) - y).max() > 0.01


def test_memory_without_places_is_a_set(random_params):
  model = Transformer(**BASE, memory=True)
  params = random_params(model, X, make_context())
  context = make_context(memory_rope=None)
  y = apply(model, params, X, context)
  turned = apply(model, params, X, context.replace(memory=context.memory[:, ::-1]))
  np.testing.assert_allclose(y, turned, atol=1e-5)


def test_closed_modulation_gates_leave_nothing_of_a_layer(random_params):
  model = Transformer(**BASE, modulated=True)
  params = random_params(model, X, make_context())
  table = params["layers"]["block"]["modulation"]
  bias = normal(L, 6, D)
  bias[:, [2, 5]] = -1.0
  table["kernel"], table["bias"] = np.zeros_like(table["kernel"]), bias.reshape(L, -1)
  np.testing.assert_allclose(apply(model, params, X, make_context()), X, atol=1e-6)


def test_attention_weights_are_left_to_look_at(random_params):
  model, mask = Transformer(**BASE), np.array([[True, False, True, True, True, True]] * B)
  context = make_context(token_mask=mask)
  params = random_params(model, X, context)
  y, seen = model.apply({"params": params}, X, context, mutable=["intermediates"])
  (weights,) = jax.tree.leaves(seen)
  assert weights.shape == (L, B, H, N, N)
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
  assert np.all(weights[..., 1] == 0.0)
  np.testing.assert_allclose(y[0], apply(model, params, X, context), atol=1e-5)


# -- Dropout ---------------------------------------------------------------------------------------


def test_dropout_depends_on_the_example_not_on_its_batch(random_params):
  model, key = Transformer(**BASE, dropout=0.3), jax.random.key(5)
  context = make_context()
  params = random_params(model, X, context)

  @jax.jit
  def dropped(x, context):
    return model.apply({"params": params}, x, context, rngs={"dropout": key})[0]

  both = dropped(X, context.replace(example_index=np.arange(B)))
  half = jax.tree.map(lambda a: a[1:] if a.shape[0] == B and a.ndim == 3 else a, context)
  alone = dropped(X[1:], half.replace(rope=context.rope, example_index=np.array([1])))
  np.testing.assert_allclose(alone[0], both[1], atol=1e-5)
  same = dropped(np.stack([X[0]] * B), context.replace(example_index=np.arange(B)))
  assert np.abs(same[0] - same[1]).max() > 0.01
  without = apply(model, params, X, context)
  assert np.abs(both - without).max() > 0.01
  np.testing.assert_allclose(without, apply(Transformer(**BASE), params, X, context), atol=1e-6)


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_each_branch_is_dropped_at_the_rate(branch, random_params):
  rate, x = 0.3, normal(16, 32, D)
  context = Context(example_index=np.arange(16))
  model = transformer.Block(heads=H, hidden=HIDDEN, dropout=rate)
  params = random_params(model, x, context)
  closed = params["mlp"]["w2"] if branch == "attention" else params["attention"]["out"]
  closed["kernel"] = 0.0 * closed["kernel"]
  kept, _ = model.apply({"params": params}, x, context)
  y, _ = model.apply({"params": params}, x, context, rngs={"dropout": jax.random.key(0)})
  dropped = np.asarray(y == x)
  assert abs(dropped.mean() - rate) < 0.01
  np.testing.assert_allclose((y - x)[~dropped], (kept - x)[~dropped] / (1 - rate), atol=1e-4)


# -- Patches ---------------------------------------------------------------------------------------


def test_patches_are_in_raster_order_and_go_back():
  images = normal(B, 4, 6, 3)
  patches = transformer.patchify(images, 2)
  assert patches.shape == (B, 6, 12)
  for n, (i, j) in enumerate(transformer.grid_coords(2, 3)):
    patch = images[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(B, -1)
    np.testing.assert_array_equal(patches[:, n], patch)
  np.testing.assert_array_equal(transformer.unpatchify(patches, 2, (2, 3)), images)
