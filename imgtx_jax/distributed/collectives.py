"""What a step computes with over all devices: reductions, example numbers, and how its activations
are split. Pure functions; nothing is placed here.

`axis` is the name of pmap's axis, or None under jit, where the batch is already the global one.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def pmean(tree, axis):
  """Mean of every array of `tree` over the devices; the identity when `axis` is None."""
  return tree if axis is None else jax.lax.pmean(tree, axis)


def all_gather(x, axis):
  """Local batch [b, ...] → global batch [B, ...] in example order; the identity without `axis`.

  Gradients flow back to every device's examples; after `pmean` of the gradients a loss on the
  gathered batch has the same gradient as under jit.
  """
  return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def example_index(n_local, axis):
  """Global indices, int32 [n_local], of this device's examples; fold them into random keys."""
  index = jnp.arange(n_local, dtype=jnp.int32)
  return index if axis is None else index + n_local * jax.lax.axis_index(axis)


def split_rows(x):
  """Activations [B, …] kept split over all devices of an fsdp mesh, as the batch is; else x.

  Without this XLA splits their width over fsdp, as the weights are, and exchanges activations
  several times a layer instead of gathering the weights.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.shape.get("fsdp", 1) == 1 or len(x) % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))
