"""Copies are independent of what was copied, keep their memory, and room for them is made early."""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.training.host_buffers import HostCopies

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_a_copy_stays_as_it_was_until_the_next():
  copies, x = HostCopies(), ARRAY.copy()
  first = copies.take("x", x)
  x[:] = 0
  np.testing.assert_array_equal(first, ARRAY)
  assert copies.take("x", jnp.asarray(ARRAY) + 1) is first
  np.testing.assert_array_equal(first, ARRAY + 1)
  assert copies.take("y", x) is not first
  other = copies.take("x", ARRAY[:2])
  assert other.shape == (2, 4) and first.shape == (3, 4)


def test_scalars_become_arrays():
  copy = HostCopies().take("step", np.int32(3))
  assert isinstance(copy, np.ndarray) and copy == 3 and copy.shape == ()


def test_reserved_memory_is_what_the_copy_lies_in():
  copies = HostCopies()
  copies.reserve({"x": jax.ShapeDtypeStruct((3, 4), jnp.float32)})
  copies._wait()
  room = copies._copies["x"]
  copies.reserve({"x": jax.ShapeDtypeStruct((3, 4), jnp.float32)})
  assert copies.take("x", ARRAY) is room
  copies.clear()
  assert copies.take("x", ARRAY) is not room
