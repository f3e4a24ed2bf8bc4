"""Styles: of images of any shape, linear, and a null that no image decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models.style_encoder import Style, StyleEncoder, mix, statistics, unweighted
from imgtx_jax.models.transformer import BlockConfig

BLOCK = BlockConfig(num_heads=2, mlp_dim=32, window=4)
ENCODER = StyleEncoder(patch=4, width=16, depth=1, num_tokens=6, modulation_dim=8, block=BLOCK)


def images(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
  return ENCODER.init(jax.random.key(0), images(1, 16, 16))


def test_images_of_every_shape_have_a_style_of_their_own(params):
  for shape in ((2, 16, 16), (2, 24, 8), (2, 8, 40)):
    style = ENCODER.apply(params, images(*shape))
    assert style.tokens.shape == (2, 6, 16) and style.modulation.shape == (2, 8)
    for part in (style.tokens, style.modulation, style.colors.mean):
      assert part.dtype == jnp.float32 and np.abs(part[0] - part[1]).max() > 1e-4


def test_null_is_learned(params):
  null = ENCODER.apply(params, 3, method="null")
  np.testing.assert_array_equal(null.tokens[2], params["params"]["null_tokens"])
  np.testing.assert_array_equal(null.modulation[1], params["params"]["null_modulation"])


def test_statistics_by_hand():
  x = np.array([0.0, 0.0, 0.0, 4.0], np.float32)[None, :, None]
  mean, deviation, skew, kurtosis = np.asarray(statistics(x))[0]
  assert mean == 1.0 and deviation == pytest.approx(3**0.5, rel=1e-4)
  assert skew == pytest.approx(np.arcsinh(2 / 3**0.5), rel=1e-3)
  assert kurtosis == pytest.approx(np.arcsinh(7 / 3 - 3), rel=1e-3)
  flat = np.asarray(statistics(np.ones((1, 4, 1), np.float32)))[0]
  np.testing.assert_allclose(flat, [1, 0.01, 0, np.arcsinh(-3)], rtol=1e-4, atol=1e-6)


def test_mix_is_a_weighted_sum():
  first, second = (
    Style(np.full((2, 3, 4), v), np.full((2, 5), 10 * v), *[np.full(2, v)] * 3) for v in (1.0, 2.0)
  )
  mixed = mix([first, second], [0.25, 0.75])
  np.testing.assert_allclose(mixed.tokens, 1.75)
  np.testing.assert_allclose(mixed.modulation, 17.5)
  each = mix([first, second], [np.array([1.0, 0.0]), np.array([0.0, 1.0])])
  np.testing.assert_allclose(each.tokens[:, 0, 0], [1, 2])
  np.testing.assert_allclose(each.modulation[:, 0], [10, 20])


def test_unweighted_undoes_mixing_with_the_null_style(params):
  null = ENCODER.apply(params, 2, method="null")
  style = ENCODER.apply(params, images(2, 16, 16))
  part = mix([null, style], [np.array([0.7, 1.0]), np.array([0.3, 0.0])])
  np.testing.assert_allclose(part.weight, [0.3, 0])
  found, expected = unweighted(part), unweighted(style)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    assert not np.any(ours[1])
