"""What the tests of all networks need: parameters without a zero gate, counts, dead gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_params():
  """fill(module, *args, **kwargs) → parameters drawn by NumPy, gates and zero matrices included."""

  def draw(rng, path, leaf):
    x = rng.standard_normal(leaf.shape).astype(np.float32)
    if path[-1].key == "scale":
      return 1.0 + 0.1 * x
    return x / np.sqrt(leaf.shape[-2]) if path[-1].key == "kernel" else 0.3 * x

  def fill(module, *args, seed=0, **kwargs):
    init = functools.partial(module.init, **kwargs)
    shapes = jax.eval_shape(init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(functools.partial(draw, rng), shapes)

  return fill


@pytest.fixture(scope="session")
def num_params():
  """count(tree) → the numbers in a tree of arrays or shapes."""
  return lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="session")
def differentiate():
  """run(fn, params, *args) → fn(params, *args), and the gradients of its weighed outputs.

  One program for both, kept for every later call with the same fn. The weights differ: a plain sum
  of outputs has no gradient through a norm.
  """

  @functools.cache
  def program(fn):
    def total(params, *args):
      outputs = fn(params, *args)
      weigh = lambda x: jnp.sum(x * np.cos(np.arange(x.size)).reshape(x.shape))  # noqa: E731
      return sum(weigh(x) for x in jax.tree.leaves(outputs)), outputs

    return jax.jit(jax.value_and_grad(total, has_aux=True))

  def run(fn, params, *args):
    (_, outputs), grads = program(fn)(params, *args)
    return outputs, grads

  return run


@pytest.fixture(scope="session")
def dead():
  """names(grads) → paths of parameters without a gradient; each scanned layer needs its own."""

  def is_dead(path, g):
    layers = g if any(getattr(p, "key", p) == "layers" for p in path) else g[None]
    return not all(np.any(np.abs(layer) > 1e-7) for layer in np.asarray(layers))

  def names(grads):
    flat, _ = jax.tree_util.tree_flatten_with_path(grads)
    return [jax.tree_util.keystr(path) for path, g in flat if is_dead(path, g)]

  return names
