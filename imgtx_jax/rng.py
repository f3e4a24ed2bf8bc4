"""Named random streams: a draw depends on the root key, a name, the step and the example alone."""

import zlib

import jax


def stream(root, name, step):
  """The key of one named use of randomness at one step; resuming needs no saved key."""
  return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def example_keys(key, index):
  """One key per example from its global index int [B]; the same on any number of devices."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def normal(key, index, shape):
  """Standard normal noise [B, *shape], one draw per global example index."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(example_keys(key, index))


def uniform(key, index, shape=()):
  """Uniform noise in [0, 1) [B, *shape], one draw per global example index."""
  return jax.vmap(lambda k: jax.random.uniform(k, shape))(example_keys(key, index))
