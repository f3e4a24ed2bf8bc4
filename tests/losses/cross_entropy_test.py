"""Losses and measures of code prediction, by hand."""

import jax
import numpy as np

from imgtx_jax.losses import cross_entropy


def test_next_code_by_hand():
  logits = np.log([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[1, 1, 1], [0.2, 0.6, 0.2]]])
  found = cross_entropy.next_code(logits + 3.0, np.array([[0, 2], [1, 0]]))
  expected = [-(np.log(0.5) + np.log(0.8)) / 2, (np.log(3) - np.log(0.2)) / 2]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bits():
  np.testing.assert_allclose(cross_entropy.bits(np.log([2.0, 8.0, 512.0])), [1, 3, 9], rtol=1e-6)


def test_entropy_bits_by_hand():
  np.testing.assert_allclose(cross_entropy.entropy_bits(np.full(8, 1 / 8)), 3.0, rtol=1e-6)
  np.testing.assert_allclose(
    cross_entropy.entropy_bits(np.array([0.5, 0.25, 0.25, 0.0])), 1.5, rtol=1e-6
  )
  assert cross_entropy.entropy_bits(np.array([0.0, 1.0])) == 0.0
  grads = jax.jit(jax.grad(cross_entropy.entropy_bits))(np.array([0.5, 0.5, 0.0], np.float32))
  assert np.all(np.isfinite(grads))


def test_class_cross_entropy_skips_the_null_class():
  logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.3, 0.5]])
  loss = lambda logits: cross_entropy.class_cross_entropy(logits, np.array([0, 3, 2]), 3)  # noqa: E731
  np.testing.assert_allclose(loss(logits), [-np.log(0.7), 0.0, -np.log(0.5)], rtol=1e-5)
  grads = jax.jit(jax.grad(lambda x: loss(x).sum()))(logits)
  assert np.any(grads[0]) and not np.any(grads[1])


def test_accuracy():
  logits = np.array([[[0.0, 1.0], [2.0, 1.0]], [[3.0, 1.0], [0.0, 1.0]]])
  found = cross_entropy.accuracy(logits, np.array([[1, 1], [0, 1]]))
  np.testing.assert_array_equal(found, [[1, 0], [1, 1]])
  assert found.dtype == np.float32
