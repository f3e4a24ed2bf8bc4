"""The losses of style transfer on features made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.losses import style


def layers(make):
  """{layer: make(its number)} of the five layers."""
  return {name: jnp.asarray(make(i), jnp.float32) for i, name in enumerate(style.STYLE_LAYERS)}


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_moments_are_of_each_channel():
  x = np.zeros((1, 2, 2, 2), np.float32)
  x[..., 0] = [[1, 3], [1, 3]]
  x[..., 1] = 5
  mean, deviation = style.moments(layers(lambda i: x))["relu1_1"]
  np.testing.assert_allclose(mean, [[2, 5]])
  np.testing.assert_allclose(deviation, [[1, 1e-5**0.5]], rtol=1e-4)


def test_style_sums_the_squared_differences_of_both_moments():
  x = draw(2, 8, 8, 3)
  target = style.moments(layers(lambda i: x))
  # Twice as far from its mean, and moved by i in layer i.
  other = layers(lambda i: x + (x - x.mean((1, 2), keepdims=True)) + i)
  expected = 5 * (x.std((1, 2)) ** 2).mean(-1) + sum(i**2 for i in range(5))
  np.testing.assert_allclose(style.style(style.moments(other), target), expected, rtol=1e-3)
  shuffled = layers(lambda i: x.reshape(2, 64, 3)[:, ::-1].reshape(2, 8, 8, 3))
  np.testing.assert_allclose(style.style(style.moments(shuffled), target), 0, atol=1e-9)


def test_content_sees_neither_mean_nor_deviation_and_two_of_unrelated_features():
  x = draw(2, 16, 16, 4)
  features = layers(lambda i: x)
  np.testing.assert_allclose(style.content(layers(lambda i: 3 * x + 7), features), 0, atol=1e-6)
  unrelated = style.content(layers(lambda i: draw(2, 16, 16, 4, seed=1)), features)
  np.testing.assert_allclose(unrelated, 4, rtol=0.1)  # 2 for each of relu4_1 and relu5_1
  only_shallow = {**features, "relu1_1": features["relu1_1"] * jnp.arange(16.0)[:, None, None]}
  assert float(style.content(only_shallow, features).max()) == 0.0


def test_blend_lies_in_between():
  first, second = ({"a": (np.full((2, 1), v), np.full((2, 1), 3 * v))} for v in (1.0, 2.0))
  mean, deviation = style.blend(first, second, np.array([0.0, 0.25]))["a"]
  np.testing.assert_allclose(mean, [[1], [1.25]])
  np.testing.assert_allclose(deviation, [[3], [3.75]])


def test_gradients_are_finite_where_a_channel_is_dead():
  dead = layers(lambda i: np.zeros((1, 4, 4, 2)))
  target = layers(lambda i: draw(1, 4, 4, 2))

  def total(x):
    moments = style.style(style.moments(x), style.moments(target))
    return jnp.sum(moments + style.content(x, target))

  assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(total)(dead)))


def test_features_are_those_of_vgg_over_their_mean(monkeypatch):
  found = {f"relu{b}_1": np.full((1, 2, 2, 1), 6.0) for b in range(1, 6)} | {"relu1_2": None}
  monkeypatch.setattr(style, "vgg16_features", lambda params, images, dtype: found)
  features = style.features({}, None)
  assert set(features) == set(style.STYLE_LAYERS)
  for name, x in features.items():
    assert float(x[0, 0, 0, 0]) == pytest.approx(6.0 / style.MEAN_ACTIVATION[name])
