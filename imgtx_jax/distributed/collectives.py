"""Pure functions that a step uses on several devices: reductions, global indices of examples, and
the split of activations. They place nothing.

`axis` is the name of pmap's axis, or None under jit, where the batch is already the global one.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def pmean(tree, axis):
  """Returns the means of the arrays of `tree` over the devices; `tree` itself without an axis."""
  return tree if axis is None else jax.lax.pmean(tree, axis)


def all_gather(x, axis):
  """Returns the global batch [B, ...] of local ones [b, ...], in order; x itself without an axis.

  Gradients flow back to every device's examples; after `pmean` of the gradients a loss on the
  gathered batch has the same gradient as under jit.
  """
  return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def example_index(n_local, axis):
  """Returns the global indices, int32 [n_local], of this device's examples, for random keys."""
  index = jnp.arange(n_local, dtype=jnp.int32)
  return index if axis is None else index + n_local * jax.lax.axis_index(axis)


def split_batch(x):
  """Splits x [B, …] over all devices of a mesh, as a batch is, so that what is computed of it is;
  x itself without a mesh, or where B does not divide."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or len(x) % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def split_rows(x):
  """Keeps activations [B, …] split over all devices of an fsdp mesh, as the batch is.

  Returns x itself under any other mesh, or none. Without it XLA splits the width over fsdp, as the
  weights are, and exchanges activations several times a layer instead of gathering the weights.
  """
  fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
  return x if fsdp == 1 else split_batch(x)


def by_rows(fn, *arrays):
  """Returns fn(*arrays) of arrays [B, …] or None, computed by each device of the mesh on its rows.

  For kernels, which XLA cannot split. fn runs on all rows where the devices do not divide them, and
  without a mesh; under pmap, whose arrays are a device's own.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.auto_axes:
    return fn(*arrays)
  rows = PartitionSpec() if len(arrays[0]) % mesh.size else PartitionSpec(mesh.axis_names)
  return jax.shard_map(fn, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(*arrays)
