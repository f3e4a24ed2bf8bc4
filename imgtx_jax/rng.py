"""Named random streams: a draw depends only on the root key, a name, the step and the example."""

import zlib

import jax
import numpy as np

MAX_SEED = 2**64 - 1


def root_key(seed):
  """Returns the root key of a seed in 0 … MAX_SEED; jax.random.key drops the upper 32 bits."""
  key = jax.random.key(seed % 2**32)
  return jax.random.fold_in(key, np.uint32(seed >> 32)) if seed >> 32 else key


def seed_32(seed):
  """Maps a seed in 0 … MAX_SEED to 32 bits; seeds under 2³² stay as they are."""
  return seed if seed < 2**32 else zlib.crc32(f"seed {seed}".encode())


def stream(root, name, step):
  """Returns the key of stream `name` at `step`; resuming needs no saved key."""
  return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def round_seed(seed, number):
  """Returns the seed of round `number` (from 1) of an experiment.

  The first round has the experiment's seed; each later round has another of 32 bits.
  """
  return seed if number == 1 else zlib.crc32(f"{seed}, round {number}".encode())


def example_keys(key, index):
  """Returns keys [B] for global example indices int [B], the same on any number of devices."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def normal(key, index, shape):
  """Returns standard normal noise [B, *shape], one draw per global example index int [B]."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(example_keys(key, index))


def uniform(key, index, shape=()):
  """Returns uniform noise [B, *shape] in [0, 1), one draw per global example index int [B]."""
  return jax.vmap(lambda k: jax.random.uniform(k, shape))(example_keys(key, index))
