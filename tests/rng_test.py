"""Random streams: a draw depends on the root key, a name, the step and the example alone."""

import itertools

import jax
import numpy as np
import pytest

from imgtx_jax import rng
from imgtx_jax.distributed.collectives import example_index

ROOT = jax.random.key(7)


def test_names_steps_and_roots_give_different_keys():
  keys = [
    tuple(np.ravel(jax.random.key_data(rng.stream(jax.random.key(root), name, step))))
    for root, name, step in itertools.product((0, 1), ("noise", "flip", "bank"), range(3))
  ]
  assert len(set(keys)) == len(keys)


def test_every_round_has_a_seed_of_its_own_and_the_first_the_experiments():
  seeds = [rng.round_seed(seed, number) for seed in (0, 1, 2**40) for number in range(1, 5)]
  assert len(set(seeds)) == len(seeds) and seeds[::4] == [0, 1, 2**40]
  roots = {tuple(np.ravel(jax.random.key_data(jax.random.key(seed)))) for seed in seeds[:8]}
  assert len(roots) == 8


def test_streams_are_the_same_in_every_process_and_under_jit():
  # Recorded: Python's own hash of a string would differ from process to process.
  data = jax.random.key_data(rng.stream(jax.random.key(0), "noise", 3))
  traced = jax.jit(lambda step: rng.stream(jax.random.key(0), "noise", step))(3)
  np.testing.assert_array_equal(jax.random.key_data(traced), data)
  expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 4255749673), 3)
  np.testing.assert_array_equal(jax.random.key_data(expected), data)


@pytest.mark.parametrize("draw", [rng.normal, rng.uniform])
def test_draws_do_not_depend_on_how_the_batch_is_split(draw):
  whole = draw(ROOT, np.arange(8), (3,))
  assert whole.shape == (8, 3) and len(np.unique(whole)) == 24
  np.testing.assert_array_equal(draw(ROOT, np.array([5, 2]), (3,)), whole[np.array([5, 2])])

  def local(_, key):
    return draw(key, example_index(2, "data"), (3,))

  found = jax.pmap(local, axis_name="data", in_axes=(0, None))(np.zeros(4), ROOT)
  np.testing.assert_array_equal(np.reshape(found, (8, 3)), whole)


def test_distributions():
  index = np.arange(4096)
  normal = np.asarray(rng.normal(ROOT, index, (4,)))
  np.testing.assert_allclose([normal.mean(), normal.std()], [0.0, 1.0], atol=0.03)
  uniform = np.asarray(rng.uniform(ROOT, index))
  assert uniform.shape == (4096,) and 0.0 <= uniform.min() and uniform.max() < 1.0
  np.testing.assert_allclose(np.histogram(uniform, 8, (0, 1))[0] / 4096, 1 / 8, atol=0.03)
