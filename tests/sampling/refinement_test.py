"""Refinement on scores whose best places are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models.discriminator import Verdict
from imgtx_jax.sampling.options import SamplingOptions
from imgtx_jax.sampling.refinement import realness, refine

B, M, D = 3, 4, 6
VECTORS = np.random.default_rng(0).standard_normal((B, M, D)).astype(np.float32)
TARGET = np.random.default_rng(1).standard_normal((M, D)).astype(np.float32)


def near(vectors):
  """How near the vectors are to TARGET; largest there."""
  return -jnp.sum((vectors - TARGET) ** 2, axis=(1, 2))


def relative_change(found):
  return np.linalg.norm(found - VECTORS, axis=2) / np.linalg.norm(VECTORS, axis=2)


def test_one_step_goes_along_the_gradient_by_the_rate():
  found = refine(near, VECTORS, SamplingOptions(refine_steps=1, refine_rate=0.1, refine_radius=1.0))
  toward = TARGET - VECTORS
  size = 0.1 * np.linalg.norm(VECTORS, axis=(1, 2)) / np.linalg.norm(toward, axis=(1, 2))
  np.testing.assert_allclose(found, VECTORS + size[:, None, None] * toward, rtol=1e-4, atol=1e-5)


def test_no_vector_leaves_its_region():
  found = refine(
    near, VECTORS, SamplingOptions(refine_steps=50, refine_rate=0.3, refine_radius=0.2)
  )
  change = relative_change(found)
  assert change.max() <= 0.2 + 1e-5 and change.mean() > 0.19  # all of them reach its edge
  toward = TARGET - VECTORS
  cosine = np.sum((found - VECTORS) * toward, axis=2)
  assert np.all(cosine > 0)


def test_the_scale_of_the_score_means_nothing():
  options = SamplingOptions(refine_steps=5, refine_rate=0.1, refine_radius=0.5)
  large = refine(lambda v: 1e4 * near(v), VECTORS, options)
  np.testing.assert_allclose(large, refine(near, VECTORS, options), rtol=1e-4, atol=1e-5)


def test_no_score_falls_even_where_steps_are_too_long():
  for steps in (1, 2, 7):
    options = SamplingOptions(refine_steps=steps, refine_rate=0.9, refine_radius=0.9)
    found = refine(near, TARGET[None] + 0.01 * VECTORS, options)
    assert np.all(near(found) >= near(TARGET[None] + 0.01 * VECTORS))


def test_an_image_is_refined_alone():
  options = SamplingOptions(refine_steps=4, refine_rate=0.1, refine_radius=0.3)
  whole = jax.jit(lambda v: refine(near, v, options))(VECTORS)
  np.testing.assert_allclose(refine(near, VECTORS[1:2], options)[0], whole[1], rtol=1e-5, atol=1e-6)


def test_without_a_gradient_nothing_moves():
  found = refine(lambda v: 0.0 * v.sum(axis=(1, 2)), VECTORS, SamplingOptions(refine_steps=3))
  np.testing.assert_array_equal(found, VECTORS)


def test_realness():
  logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], np.float32))
  verdict = Verdict(logit=np.array([1.0, -2.0]), class_logits=logits, features=None)
  found = realness(verdict, jnp.array([1, 2]), 3)
  assert found == pytest.approx([1.0 + np.log(0.2), -2.0 + np.log(0.5)], rel=1e-5)
  assert realness(verdict, jnp.array([3, 3]), 3) == pytest.approx([1.0, -2.0])
