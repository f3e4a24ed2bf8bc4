"""What the tests of all networks need: parameters without a zero gate, counts, dead gradients."""

import functools
import math

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """Networks this small spend their time in the compiler."""
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


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
def without_gradient():
  """names(output_fn, params) → paths of parameters on which no output depends.

  The outputs are weighed at random: a plain sum has no gradient through a norm.
  """

  def names(output_fn, params):
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
      lambda s: rng.standard_normal(s.shape).astype(np.float32),
      jax.eval_shape(output_fn, params),
    )

    def total(params):
      weighed = jax.tree.map(lambda x, w: (x * w).sum(), output_fn(params), weights)
      return sum(jax.tree.leaves(weighed))

    # Every layer of a scanned stack must have a gradient of its own.
    def dead(path, g):
      layers = g if any(getattr(p, "key", p) == "layers" for p in path) else g[None]
      return not np.all([np.any(np.abs(layer) > 1e-7) for layer in np.asarray(layers)])

    grads = jax.jit(jax.grad(total))(params)
    flat, _ = jax.tree_util.tree_flatten_with_path(grads)
    return [jax.tree_util.keystr(path) for path, g in flat if dead(path, g)]

  return names
