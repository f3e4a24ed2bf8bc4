"""Adversarial losses by hand, gradient penalties against closed forms, augmentations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.losses import adversarial

SHAPE = (4, 6, 6, 3)
IMAGES = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
WEIGHTS = np.random.default_rng(2).standard_normal(SHAPE[1:]).astype(np.float32)


# -- Losses ----------------------------------------------------------------------------------------

REAL, FAKE = np.array([2.0, 0.0, -1.0]), np.array([1.0, 0.0, 3.0])


def softplus(x):
  return np.log1p(np.exp(x))


@pytest.mark.parametrize(
  "name, discriminator, generator",
  [
    ("relativistic", softplus([-1.0, 0.0, 4.0]), softplus([1.0, 0.0, -4.0])),
    (
      "nonsaturating",
      softplus([-2.0, 0.0, 1.0]) + softplus([1.0, 0.0, 3.0]),
      softplus([-1.0, 0.0, -3.0]),
    ),
    ("hinge", [2.0, 2.0, 6.0], [-1.0, 0.0, -3.0]),
  ],
)
def test_losses_by_hand(name, discriminator, generator):
  losses = adversarial.LOSSES[name](REAL, FAKE)
  np.testing.assert_allclose(losses[0], discriminator, rtol=1e-5)
  np.testing.assert_allclose(losses[1], generator, rtol=1e-5)


def test_every_loss_lets_the_players_pull_apart():
  for name, loss in adversarial.LOSSES.items():
    of = lambda i, loss=loss: jax.grad(lambda r, f: loss(r, f)[i], argnums=(0, 1))(0.1, 0.2)  # noqa: E731
    real, fake = of(0)
    assert real < 0 < fake, name  # D raises real logits and lowers fake ones
    real, fake = of(1)
    assert fake < 0 and real >= 0, name  # G raises those of its images


# -- Penalties -------------------------------------------------------------------------------------


def linear(x):
  return jnp.sum(x * WEIGHTS, axis=(1, 2, 3))


def network(x):
  """A small network with curvature; logits [B]."""
  hidden = jnp.tanh(x.reshape(len(x), -1) @ KERNEL)
  return hidden @ OUT


KERNEL = np.random.default_rng(3).standard_normal((108, 8)).astype(np.float32) / 10
OUT = np.random.default_rng(4).standard_normal(8).astype(np.float32)


def test_exact_penalty_in_closed_form():
  np.testing.assert_allclose(
    adversarial.gradient_penalty(linear, IMAGES), np.sum(WEIGHTS**2), rtol=1e-5
  )
  slope = 1 - np.tanh(IMAGES.reshape(4, -1) @ KERNEL) ** 2  # [B, 8]
  grads = (slope * OUT) @ KERNEL.T
  expected = np.mean(np.sum(grads**2, axis=-1))
  np.testing.assert_allclose(adversarial.gradient_penalty(network, IMAGES), expected, rtol=1e-4)


def test_exact_penalty_can_be_differentiated():
  penalty = lambda scale: adversarial.gradient_penalty(lambda x: scale * linear(x), IMAGES)  # noqa: E731
  np.testing.assert_allclose(jax.grad(penalty)(3.0), 6.0 * np.sum(WEIGHTS**2), rtol=1e-4)


def nearly_linear(x):
  """Linear up to a curvature that a step of .1 does not see at this tolerance."""
  return linear(x) + 1e-3 * network(x)


@pytest.mark.parametrize("sigma", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("score", [linear, nearly_linear])
def test_difference_penalty_is_the_squared_directional_derivative(score, sigma):
  _, slopes = jax.jvp(score, (IMAGES,), (NOISE,))
  penalty = functools.partial(adversarial.difference_penalty, score)
  found = jax.jit(penalty)(IMAGES, NOISE, sigma)
  np.testing.assert_allclose(
    found, np.mean(np.asarray(slopes) ** 2), rtol=2e-2 if sigma < 0.01 else 5e-3
  )


def test_difference_penalty_comes_near_the_directional_derivative_of_a_network():
  _, slopes = jax.jvp(network, (IMAGES,), (NOISE,))
  expected = np.mean(np.asarray(slopes) ** 2)
  errors = [
    abs(adversarial.difference_penalty(network, IMAGES, NOISE, sigma) / expected - 1)
    for sigma in (1.0, 0.1, 0.01)
  ]
  assert errors[2] < errors[1] < errors[0] and errors[2] < 0.02


def test_difference_penalty_has_the_exact_ones_mean():
  """E (ε·∇D)² = ‖∇D‖²."""
  noise = np.random.default_rng(5).standard_normal((4096, *SHAPE[1:])).astype(np.float32)
  images = np.broadcast_to(IMAGES[:1], noise.shape)
  found = adversarial.difference_penalty(linear, images, noise, 0.1)
  np.testing.assert_allclose(found, np.sum(WEIGHTS**2), rtol=0.1)


# -- Augmentations ---------------------------------------------------------------------------------

BATCH = np.random.default_rng(6).uniform(-1, 1, (6, 16, 24, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 6)
ALL = ("color", "translation", "cutout")
augment = jax.jit(adversarial.augment, static_argnums=2)


@pytest.mark.parametrize("kinds", [ALL, *((kind,) for kind in ALL)], ids=str)
def test_augmentation_depends_on_the_examples_key_alone(kinds):
  images = np.stack([BATCH[0]] * 6)
  y = augment(images, KEYS, kinds)
  assert y.shape == images.shape
  np.testing.assert_array_equal(augment(images, KEYS, kinds), y)
  turned = augment(BATCH[::-1], KEYS[::-1], kinds)[::-1]
  np.testing.assert_allclose(turned, augment(BATCH, KEYS, kinds), atol=1e-6)
  assert np.all([np.abs(y[0] - other).max() > 0.01 for other in y[1:]])


def test_no_augmentation():
  np.testing.assert_array_equal(augment(BATCH, KEYS, ()), BATCH)


def test_color_shifts_saturates_and_stretches():
  keys = jax.random.split(jax.random.key(1), 512)
  y = np.asarray(augment(np.stack([BATCH[0]] * 512), keys, ("color",)))
  brightness = y.mean(axis=(1, 2, 3)) - BATCH[0].mean()
  assert -0.5 < brightness.min() < -0.45 and 0.45 < brightness.max() < 0.5
  grey = y.mean(axis=-1)
  contrast = grey.std(axis=(1, 2)) / BATCH[0].mean(axis=-1).std()
  assert 0.5 < contrast.min() < 0.55 and 1.45 < contrast.max() < 1.5
  saturation = (y - grey[..., None]).std(axis=(1, 2, 3)) / contrast
  saturation /= (BATCH[0] - BATCH[0].mean(axis=-1, keepdims=True)).std()
  assert 0 < saturation.min() < 0.05 and 1.95 < saturation.max() < 2.0


def test_translation_moves_by_up_to_an_eighth():
  keys = jax.random.split(jax.random.key(2), 256)
  y = np.asarray(augment(np.stack([BATCH[0]] * 256), keys, ("translation",)))
  padded = np.pad(BATCH[0], ((2, 2), (3, 3), (0, 0)), mode="edge")
  places = {(i, j): padded[i : i + 16, j : j + 24] for i in range(5) for j in range(7)}
  found = [[at for at, crop in places.items() if np.array_equal(crop, image)] for image in y]
  assert all(len(at) == 1 for at in found)
  assert {at for (at,) in found} == set(places)


def test_cutout_blanks_a_box_of_half_the_side():
  keys = jax.random.split(jax.random.key(3), 256)
  y = np.asarray(augment(np.stack([BATCH[0]] * 256), keys, ("cutout",)))
  holes = np.all(y == 0.0, axis=-1)
  np.testing.assert_array_equal(y[~holes], np.broadcast_to(BATCH[0], y.shape)[~holes])
  for hole in holes:
    rows, columns = hole.any(axis=1), hole.any(axis=0)
    np.testing.assert_array_equal(hole, rows[:, None] & columns)
    assert np.sum(np.diff(rows.astype(int)) != 0) <= 2  # one box
    assert rows.sum() <= 8 and columns.sum() <= 12
  assert {h.sum() for h in holes} >= {8 * 12} and 0.7 < holes.any(axis=0).mean() <= 1.0


def test_augmentation_can_be_differentiated():
  grads = jax.jit(jax.grad(lambda x: jnp.sum(adversarial.augment(x, KEYS, ALL) ** 2)))(BATCH)
  assert np.all(np.isfinite(grads)) and np.all(np.any(grads, axis=(1, 2, 3)))


def test_unknown_augmentation():
  with pytest.raises(ValueError, match="'blur'"):
    adversarial.augment(BATCH, KEYS, ("blur",))
