"""Vector and finite scalar quantisation: gradients, losses, revival, perturbation, reductions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models.quantizer import FiniteScalarQuantizer, VectorQuantizer, normalize

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


# -- Perturbation ----------------------------------------------------------------------------------


def test_perturbation_replaces_the_share_by_near_neighbours():
  z = normal(64, 64, C)
  keys = jax.random.split(jax.random.key(0), 64)
  perturbed = jax.jit(lambda z, keys, share: VQ.quantize(PARAMS, z, perturb=share, keys=keys))
  plain = quantize(VQ, PARAMS, z)
  out = perturbed(z, keys, 0.3)
  np.testing.assert_array_equal(out.codes, plain.codes)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), out.losses, plain.losses)
  codebook = unit(PARAMS["codebook"])
  ranks = np.argsort(-np.einsum("bnc,vc->bnv", unit(z), codebook), axis=-1)
  used = np.argmin(np.sum((np.asarray(out.vectors)[:, :, None] - codebook) ** 2, -1), -1)
  rank = np.argmax(ranks == used[..., None], axis=-1)
  assert abs(np.mean(rank > 0) - 0.3) < 0.02
  shares = np.bincount(rank.ravel(), minlength=V) / rank.size
  np.testing.assert_allclose(shares[1:5], 0.3 / 4, atol=0.02)
  assert not np.any(shares[5:])
  again = perturbed(z[::-1], keys[::-1], 0.3)
  np.testing.assert_allclose(again.vectors[::-1], out.vectors, atol=1e-6)
  np.testing.assert_allclose(perturbed(z, keys, 0.0).vectors, plain.vectors, atol=1e-6)


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


# -- Finite scalar quantisation --------------------------------------------------------------------

LEVELS = (8, 5, 2, 3)
FSQ = FiniteScalarQuantizer(LEVELS)


def test_fsq_codes_and_values_are_one_to_one():
  assert (FSQ.codebook_size, FSQ.code_dim) == (240, 4)
  values = np.asarray(FSQ.dequantize({}, np.arange(240)))
  expected = {tuple(v) for v in itertools.product(*(np.linspace(-1, 1, n) for n in LEVELS))}
  assert {tuple(v) for v in values.astype(np.float64).round(4)} == {
    tuple(np.round(v, 4)) for v in expected
  }


def test_fsq_reaches_all_codes_and_goes_back():
  fsq, side = FiniteScalarQuantizer((8, 5, 2)), 61
  grid = np.linspace(-6, 6, side, dtype=np.float32)
  z = np.stack(np.meshgrid(*[grid] * 3, indexing="ij"), axis=-1).reshape(side, -1, 3)
  out = quantize(fsq, {}, z)
  np.testing.assert_array_equal(np.unique(out.codes), np.arange(80))
  np.testing.assert_allclose(fsq.dequantize({}, out.codes), out.vectors, atol=1e-6)
  shares = np.bincount(np.ravel(out.codes), minlength=80) / side**3
  np.testing.assert_allclose(out.frequencies, shares, rtol=1e-4)
  # Each channel is a staircase that follows its latent.
  steps = np.diff(np.asarray(out.vectors)[:, 0, 0])
  assert np.all(steps > -1e-6) and np.sum(steps > 0.1) == 7


def test_fsq_gradients_pass_straight_through():
  z = normal(B, N, 4)
  grads = jax.jit(jax.grad(lambda z: jnp.sum(FSQ.quantize({}, z).vectors)))(z)
  half = (np.array(LEVELS) - 1) / 2
  shift = np.where(np.array(LEVELS) % 2 == 0, 0.5, 0.0)
  slope = 1.001 / np.cosh(z + np.arctanh(0.999 * shift / half)) ** 2
  np.testing.assert_allclose(grads, slope, rtol=1e-4, atol=1e-6)


def test_fsq_perturbation_moves_single_channels_by_one_level():
  fsq = FiniteScalarQuantizer((7, 7))
  z = normal(64, 64, 2)
  keys = jax.random.split(jax.random.key(0), 64)
  plain = quantize(fsq, {}, z)
  out = jax.jit(lambda z, keys: fsq.quantize({}, z, perturb=0.2, keys=keys))(z, keys)
  np.testing.assert_array_equal(out.codes, plain.codes)
  inner = np.abs(np.asarray(plain.vectors)) < 0.9  # the outer levels can only go inwards
  moved = np.asarray(out.vectors - plain.vectors)[inner] * 3
  assert set(np.unique(moved.round(3))) == {-1.0, 0.0, 1.0}
  assert abs(np.mean(np.abs(moved) > 0.5) - 0.2) < 0.02
  assert abs(moved.mean()) < 0.02


def test_fsq_keeps_usage_and_has_nothing_to_revive():
  z = normal(B, N, 4)
  out = quantize(FSQ, FSQ.init(None), z)
  params, usage, revived = FSQ.revive({}, FSQ.init_usage(), out.frequencies, z, None)
  assert params == {} and revived == 0 and out.losses == {}
  np.testing.assert_allclose(usage, 0.01 * out.frequencies, rtol=1e-6)
