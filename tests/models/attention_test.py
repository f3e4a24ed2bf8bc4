"""Attention by distance, and matrices that keep their spectral norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models import attention, layers, transformer
from imgtx_jax.models.attention import Attention
from imgtx_jax.models.transformer import BlockConfig, Context, Transformer

B, N, M, D, H = 2, 5, 3, 16, 2
K = D // H


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


X, MEMORY = normal(B, N, D), normal(B, M, 12)


def by_hand(q, k, v, out, kind):
  """Attention [B, N, D] of q, k, v [B, ·, D], a head and a token at a time."""
  found = np.zeros((B, q.shape[1], D), np.float32)
  for b in range(B):
    for h in range(H):
      part = slice(h * K, (h + 1) * K)
      for n in range(q.shape[1]):
        if kind == "l2":
          scores = -np.sum((q[b, n, part] - k[b, :, part]) ** 2, axis=-1)
        else:
          scores = k[b, :, part] @ q[b, n, part]
        weights = np.exp(scores / np.sqrt(K))
        found[b, n, part] = weights / weights.sum() @ v[b, :, part]
  return found @ out


@pytest.mark.parametrize("kind", attention.KINDS)
@pytest.mark.parametrize("cross", [False, True])
def test_attention_by_hand(kind, cross, random_params):
  model, context = Attention(H, cross=cross, kind=kind), Context(memory=MEMORY)
  params = random_params(model, X, context)
  y, _ = model.apply({"params": params}, X, context)
  kernels = {name: value["kernel"] for name, value in params.items()}
  if cross:
    q, (k, v) = X @ kernels["q"], np.split(MEMORY @ kernels["kv"], 2, axis=-1)
  elif kind == "l2":  # queries and keys share a matrix
    q, v = np.split(X @ kernels["qv"], 2, axis=-1)
    k = q
  else:
    q, k, v = np.split(X @ kernels["qkv"], 3, axis=-1)
  np.testing.assert_allclose(y, by_hand(q, k, v, kernels["out"], kind), rtol=1e-4, atol=1e-5)


def slope(kind, at, params):
  """The largest singular value of the Jacobian of attention at tokens [N, D]."""
  model = Attention(H, kind=kind)
  run = jax.jit(
    jax.jacobian(lambda x: model.apply({"params": params}, x[None], Context())[0][0].reshape(-1))
  )
  return np.linalg.norm(np.asarray(run(at)).reshape(N * D, N * D), ord=2)


def test_its_slope_stays_bounded_where_that_of_inner_products_does_not(random_params):
  """One token in the middle and others ever farther around it (arXiv:2006.04710): each may get the
  middle one's weight, and inner products give slopes that grow with the square of the distance."""
  around = normal(N, D, seed=3)
  around[0] = 0.0
  slopes = {}
  for kind in attention.KINDS:
    params = random_params(Attention(H, kind=kind), X, Context())
    slopes[kind] = [slope(kind, size * around, params) for size in (1.0, 10.0, 100.0)]
  assert slopes["dot"][2] > 20 * slopes["dot"][0]
  assert max(slopes["l2"]) < 3 * slopes["l2"][0]


def test_distances_know_no_origin(random_params):
  """Moving all tokens by one vector moves the values by it, and no weight."""
  model, shift = Attention(H, kind="l2"), normal(D, seed=2)
  params = random_params(model, X, Context())
  y, moved = (model.apply({"params": params}, x, Context())[0] for x in (X, X + shift))
  value = shift @ params["qv"]["kernel"][:, D:] @ params["out"]["kernel"]
  np.testing.assert_allclose(moved, y + value, rtol=1e-3, atol=1e-3)


def test_cached_and_masked_attention_by_distance(random_params):
  """One token at a time over a cache gives what a causal pass does; the weights to look at too."""
  context = Context(rope=layers.rope_table(layers.grid_coords(1, N), K))
  model = Transformer(1, BlockConfig(H, 32, causal=True, attention="l2", qk_norm=True))
  params = random_params(model, X, context)
  whole, _ = model.apply({"params": params}, X, context)
  flat, model = transformer.unstack_layers(params), model.clone(scan=False)
  caches, found = transformer.init_cache(1, N, B, H, K), []
  for n in range(N):
    now = context.replace(rope=context.rope[:, n : n + 1], position=n)
    y, caches = model.apply({"params": flat}, X[:, n : n + 1], now, caches)
    found.append(y)
  np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-4)
  looked = Attention(H, kind="l2")
  params = random_params(looked, X, Context())
  mask = np.array([[True, False, True, True, True]] * B)
  masked = Context(token_mask=mask)
  y, sown = looked.apply({"params": params}, X, masked, mutable="intermediates")
  (weights,) = sown["intermediates"]["attention"]
  v = (X @ params["qv"]["kernel"])[..., D:].reshape(B, N, H, K)
  expected = np.einsum("bhnm,bmhk->bnhk", weights, v).reshape(B, N, D) @ params["out"]["kernel"]
  np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-5)
  assert np.all(weights[..., 1] == 0)


# -- Spectral norms --------------------------------------------------------------------------------


def test_spectral_norm():
  matrix = np.diag(np.array([3.0, 1.0, 0.5, 0.1], np.float32))[:, :3]
  assert layers.spectral_norm(matrix) == pytest.approx(3.0, rel=1e-4)
  wide = normal(24, 40)
  exact = np.linalg.norm(wide, ord=2)
  assert 0.95 * exact < layers.spectral_norm(wide) <= exact * (1 + 1e-5)
  assert layers.spectral_norm(np.zeros((4, 3), np.float32)) == 0
  # The gradient is that of the exact norm, uvᵀ, where power iteration has converged.
  u, s, v = np.linalg.svd(normal(6, 5))
  clear = (u[:, :5] * np.array([4.0, 1.0, 1.0, 0.5, 0.1])) @ v
  grads = jax.grad(layers.spectral_norm)(jnp.asarray(clear))
  np.testing.assert_allclose(grads, np.outer(u[:, 0], v[0]), atol=1e-3)


def effective(params, width):
  """The matrix that a Linear with spectral normalisation multiplies with."""
  model = layers.Linear(8, spectral_norm=True)
  return np.asarray(model.apply({"params": params}, np.eye(width, dtype=np.float32)))


def test_the_spectral_norm_stays_what_it_was():
  model = layers.Linear(8, spectral_norm=True)
  params = model.init(jax.random.key(0), normal(2, 12))["params"]
  kernel = np.asarray(params["kernel"])
  first = np.linalg.norm(kernel, ord=2)
  np.testing.assert_allclose(effective(params, 12), kernel, rtol=1e-5)  # it starts as it was drawn
  moved = 2.5 * kernel + 3.0 * np.outer(normal(12), normal(8))
  found = effective(params | {"kernel": jnp.asarray(moved)}, 12)
  assert np.linalg.norm(moved, ord=2) > 2 * first
  assert np.linalg.norm(found, ord=2) == pytest.approx(first, rel=0.03)
  np.testing.assert_allclose(found / found[0, 0], moved / moved[0, 0], rtol=1e-4)

  def loss(params):
    return jnp.sum(jnp.sin(model.apply({"params": params}, normal(2, 12))))

  grads = jax.grad(loss)(params)
  assert grads["initial_norm"] == 0 and np.any(grads["kernel"])
  # A longer kernel is the same layer: nothing is to be gained along it.
  assert np.sum(grads["kernel"] * kernel) == pytest.approx(0, abs=1e-4)


def test_only_the_matrices_of_the_branches_are_held():
  model = Transformer(2, BlockConfig(H, 32, modulated=True, attention="l2", spectral_norm=True))
  context = Context(modulation=normal(B, 4))
  params = jax.eval_shape(model.init, jax.random.key(0), X, context)["params"]
  block = params["layers"]["block"]
  held = {k for k, v in block["attention"].items() if "initial_norm" in v}
  held |= {k for k, v in block["mlp"].items() if "initial_norm" in v}
  assert held == {"qv", "out", "w13", "w2"} and "initial_norm" not in block["modulation"]
  assert block["mlp"]["w2"]["initial_norm"].shape == (2,)
