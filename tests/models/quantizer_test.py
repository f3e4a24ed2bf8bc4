"""Vector quantisation: gradients, losses, revival, reductions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models.quantizer import VectorQuantizer, normalize

V, C, B, N = 16, 4, 8, 6
VQ = VectorQuantizer(codebook_size=V, code_dim=C)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


quantize = jax.jit(lambda codes, params, z: codes.quantize(params, z), static_argnums=0)
Z = normal(B, N, C)
PARAMS = {"codebook": normal(V, C, seed=1)}


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


# -- Vector quantisation ---------------------------------------------------------------------------


def test_codes_are_the_nearest_on_the_sphere():
  out = quantize(VQ, PARAMS, Z)
  z, codebook = unit(Z), unit(PARAMS["codebook"])
  distances = np.sum((z[:, :, None] - codebook) ** 2, axis=-1)
  np.testing.assert_array_equal(out.codes, distances.argmin(axis=-1))
  assert out.codes.dtype == jnp.int32
  np.testing.assert_allclose(out.vectors, codebook[np.asarray(out.codes)], atol=1e-6)
  np.testing.assert_allclose(VQ.dequantize(PARAMS, out.codes), out.vectors, atol=1e-6)
  shares = np.bincount(np.ravel(out.codes), minlength=V) / (B * N)
  np.testing.assert_allclose(out.frequencies, shares, atol=1e-6)


def test_initial_codebook_lies_on_the_sphere():
  codebook = VQ.init(jax.random.key(0))["codebook"]
  assert codebook.shape == (V, C)
  np.testing.assert_allclose(np.linalg.norm(codebook, axis=-1), 1.0, atol=1e-5)


def test_gradients_pass_straight_through_to_the_normalised_latents():
  weights = normal(B, N, C, seed=2)
  through = jax.grad(lambda z, p: jnp.sum(weights * VQ.quantize(p, z).vectors), argnums=(0, 1))
  grads, codebook_grads = jax.jit(through)(Z, PARAMS)
  expected = jax.jit(jax.grad(lambda z: jnp.sum(weights * normalize(z))))(Z)
  np.testing.assert_allclose(grads, expected, atol=1e-6)
  assert np.abs(grads).max() > 0.1
  assert not np.any(codebook_grads["codebook"])


def test_losses_and_whom_they_move():
  out = quantize(VQ, PARAMS, Z)
  error = np.mean((np.asarray(out.vectors) - unit(Z)) ** 2)
  np.testing.assert_allclose(out.losses["codebook"], error, rtol=1e-5)
  np.testing.assert_allclose(out.losses["commitment"], 0.25 * error, rtol=1e-5)
  assert "entropy" not in out.losses
  for name, mover in (("codebook", "params"), ("commitment", "latents")):
    loss = lambda z, p, name=name: VQ.quantize(p, z).losses[name]  # noqa: E731
    latents, params = jax.jit(jax.grad(loss, argnums=(0, 1)))(Z, PARAMS)
    assert np.any(latents) == (mover == "latents")
    assert np.any(params["codebook"]) == (mover == "params")


def test_zero_latents_have_finite_gradients():
  grads = jax.jit(jax.grad(lambda z: jnp.sum(VQ.quantize(PARAMS, z).vectors)))(np.zeros_like(Z))
  assert np.all(np.isfinite(grads))


# -- Revival ---------------------------------------------------------------------------------------


def revive(usage, z=Z, params=PARAMS, seed=0):
  counts = quantize(VQ, params, z).frequencies
  return jax.jit(VQ.revive)(params, usage, counts, z, jax.random.key(seed))


def is_latent(rows, z=Z):
  """Which rows are one of the latents."""
  return np.any(np.all(np.isclose(rows[:, None], unit(z).reshape(-1, C), atol=1e-6), -1), -1)


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_the_first_step_draws_the_whole_codebook_from_data(spread):
  # Without spread all latents choose one code, which must not stay where chance put it.
  z = spread * Z + (1.0 - spread) + 0.01 * normal(B, N, C, seed=3)
  params, usage, revived = revive(VQ.init_usage(), z)
  assert revived == V and np.all(is_latent(params["codebook"], z))
  assert len(np.unique(params["codebook"], axis=0)) > V // 2
  np.testing.assert_allclose(usage, 1 / V)


def test_only_dead_codes_are_revived():
  alive = np.arange(V) % 2 == 0
  usage = np.where(alive, 0.5, 1e-4).astype(np.float32)
  chosen = np.asarray(quantize(VQ, PARAMS, Z).frequencies) > 0
  params, after, revived = revive(usage)
  # One batch raises the running share of a chosen code to at least .01 / 48, under .05 / 16.
  dead = (0.99 * usage + 0.01 * np.asarray(quantize(VQ, PARAMS, Z).frequencies)) < 0.05 / V
  assert revived == dead.sum() and 0 < dead.sum() <= V // 2
  np.testing.assert_array_equal(params["codebook"][~dead], PARAMS["codebook"][~dead])
  assert np.all(is_latent(params["codebook"][dead]))
  np.testing.assert_allclose(after[dead], 1 / V)
  np.testing.assert_allclose(
    after[alive & ~chosen], 0.99 * 0.5, rtol=1e-6, err_msg="unused codes fade"
  )


def test_an_unused_code_dies_after_a_while_and_a_used_one_does_not():
  usage = np.full(V, 1 / V, np.float32)
  counts = np.zeros(V, np.float32)
  counts[:4] = 0.25
  deaths = np.zeros(V, int)
  step = jax.jit(lambda usage, key: VQ.revive(PARAMS, usage, counts, Z, key))
  for i in range(310):  # .99^299 < .05
    before = usage
    _, usage, _ = step(usage, jax.random.key(i))
    deaths += np.asarray(usage) == np.float32(1 / V)
    if i < 290:
      assert np.all(usage[4:] < before[4:])
  np.testing.assert_array_equal(deaths, [0] * 4 + [1] * 12)


# -- Entropy ---------------------------------------------------------------------------------------

AXES = {"codebook": np.eye(C, dtype=np.float32)}


@pytest.mark.parametrize(
  "latents, expected",
  [
    (np.eye(C), -np.log(C)),  # sure choices, all codes used
    (np.tile(np.eye(C)[:1], (C, 1)), 0.0),  # sure choices of one code
    (np.ones((C, C)), np.log(C) - np.log(C)),  # no choice at all
    (np.eye(C)[[0, 0, 1, 1]], -np.log(2)),
  ],
)
def test_entropy_of_hand_made_choices(latents, expected):
  codes = VectorQuantizer(codebook_size=C, code_dim=C, entropy=0.5)
  out = quantize(codes, AXES, latents[None].astype(np.float32))
  np.testing.assert_allclose(out.losses["entropy"], 0.5 * expected, atol=1e-5)


def test_entropy_in_between():
  codes = VectorQuantizer(codebook_size=2, code_dim=2, entropy=1.0, entropy_temperature=0.5)
  angle = 0.3
  latents = np.array([[[np.cos(angle), np.sin(angle)]]], np.float32)
  p = 1 / (1 + np.exp((np.sin(angle) - np.cos(angle)) / 0.5))
  entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
  mixed = np.concatenate([latents, latents[..., ::-1]])  # the mean is uniform
  out = quantize(codes, {"codebook": np.eye(2, dtype=np.float32)}, mixed)
  np.testing.assert_allclose(out.losses["entropy"], entropy - np.log(2), rtol=1e-5)


# -- Reductions ------------------------------------------------------------------------------------


def test_four_devices_compute_what_one_does():
  codes = VectorQuantizer(codebook_size=V, code_dim=C, entropy=0.1, entropy_temperature=0.1)
  usage = np.where(np.arange(V) < 8, 0.2, 0.0).astype(np.float32)

  def run(z, axis):
    def loss(z, params):
      out = codes.quantize(params, z, axis=axis)
      return sum(out.losses.values()), out

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(z, PARAMS)
    after = codes.revive(PARAMS, usage, out.frequencies, z, jax.random.key(0), axis=axis)
    codebook_grads, losses = grads[1], out.losses
    if axis:
      codebook_grads, losses = jax.lax.pmean((codebook_grads, losses), axis)
    return grads[0], (codebook_grads, losses, out.frequencies, after)

  latent_grads, expected = jax.jit(functools.partial(run, axis=None))(Z)
  devices = jax.device_count()
  assert devices == 4
  split = Z.reshape(devices, B // devices, N, C)
  local_grads, found = jax.pmap(functools.partial(run, axis="data"), axis_name="data")(split)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(lambda a, b: [close(x, b) for x in a], found, expected)
  # Each device's gradient is that of its own mean: the step's pmean divides by their number.
  close(np.reshape(local_grads, Z.shape) / devices, latent_grads)


def test_neighbours_on_the_path_are_alike():
  codes = VectorQuantizer(codebook_size=100, code_dim=C)
  params = {"codebook": normal(100, C, seed=2)}
  path = np.asarray(jax.jit(codes.path)(params))
  assert sorted(path) == list(range(100))

  def length(order):
    return np.linalg.norm(np.diff(codes.dequantize(params, order), axis=0), axis=1).mean()

  vectors = np.asarray(codes.dequantize(params, np.arange(100)))
  first = np.linalg.svd(vectors - vectors.mean(axis=0))[2][0]
  assert length(path) < 0.9 * length(np.argsort(vectors @ first)) < 0.9 * length(np.arange(100))
