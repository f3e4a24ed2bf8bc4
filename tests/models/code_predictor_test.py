"""Codes from uniforms: what the predictor looks at, and that it learns a seeded map."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imgtx_jax.models.code_predictor import CodePredictor, fourier_features
from imgtx_jax.models.transformer import BlockConfig

V, SHAPE, N = 8, (2, 3), 6
MODEL = CodePredictor(
  codebook_size=V,
  classes=2,
  width=32,
  depth=1,
  shape=SHAPE,
  block=BlockConfig(num_heads=2, mlp_dim=64),
)
DRAW = np.random.default_rng(0)
UNIFORMS = DRAW.random((64, N)).astype(np.float32)
LABELS = DRAW.integers(0, 2, 64)
# Each code depends on its own uniform, on the code before it and on the label.
CODES = np.floor(4 * UNIFORMS).astype(np.int32)
CODES += 4 * ((np.roll(CODES, 1, axis=1) % 2) ^ LABELS[:, None])


def test_it_learns_codes_that_depend_on_each_other():
  known = np.arange(64)[:, None] % 3 > np.arange(N)  # none, one or two of the codes
  params = MODEL.init(jax.random.key(0), UNIFORMS, CODES, known, LABELS)
  tx = optax.adam(1e-2)

  def loss_fn(params):
    logits = MODEL.apply(params, UNIFORMS, CODES, known, LABELS)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, CODES)
    return jnp.mean(nats, where=~known), logits

  def step(carry, _):
    params, state = carry
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss

  (params, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))(
    (params, tx.init(params))
  )
  assert losses[0] > 1.5 and losses[-1] < 0.2
  # Without the numbers the codes could be told no better than one of four.
  blind = MODEL.apply(params, UNIFORMS[::-1], CODES, known, LABELS)
  assert np.mean(np.argmax(blind, axis=-1) == CODES, where=~known) < 0.4


def test_unknown_codes_and_uniforms_of_known_ones_are_not_looked_at():
  known = np.arange(N) < 3
  known = np.broadcast_to(known, (4, N))
  params = MODEL.init(jax.random.key(0), UNIFORMS[:4], CODES[:4], known, LABELS[:4])
  run = jax.jit(lambda codes, uniforms: MODEL.apply(params, uniforms, codes, known, LABELS[:4]))
  expected = run(CODES[:4], UNIFORMS[:4])
  assert expected.shape == (4, N, V) and expected.dtype == jnp.float32
  codes, uniforms = np.where(known, CODES[:4], 7), np.where(known, 0.5, UNIFORMS[:4])
  np.testing.assert_array_equal(run(codes, uniforms), expected)
  assert np.all(np.any(run(CODES[:4], 1 - UNIFORMS[:4]) != expected, axis=-1))


def test_fourier_features_tell_near_numbers_apart():
  features = fourier_features(jnp.linspace(0, 0.99, 100))
  assert features.shape == (100, 13)
  assert np.linalg.norm(np.diff(features, axis=0), axis=1).min() > 0.3
