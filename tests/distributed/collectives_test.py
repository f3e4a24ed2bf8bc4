"""Activations keep the split of the batch, under fsdp only."""

import jax
import jax.numpy as jnp
import pytest

from imgtx_jax.benchmark import model_flops
from imgtx_jax.distributed import collectives
from imgtx_jax.distributed.sharding import make_parallel
from imgtx_jax.models import layers
from imgtx_jax.models.transformer import BlockConfig, Context, Transformer


def constraints(jaxpr):
  """Specs of the sharding constraints in a jaxpr and those inside it."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "sharding_constraint":
      found.append(tuple(equation.params["sharding"].spec))
    for inner in model_flops._inner_jaxprs(equation.params):
      found += constraints(inner)
  return found


@pytest.mark.parametrize(("fsdp", "rows", "kept"), [(2, 8, True), (2, 6, False), (1, 8, False)])
def test_activations_keep_the_split_of_the_batch(fsdp, rows, kept):
  devices = make_parallel("jit", fsdp=fsdp)
  network = Transformer(2, BlockConfig(num_heads=2, mlp_dim=16))
  x = jnp.zeros((rows, 4, 8))
  context = Context(rope=layers.rope_table(layers.grid_coords(2, 2), 4))

  def step(params, batch, rng, *, axis):
    return network.apply(params, batch, context)[0]

  params = jax.eval_shape(network.init, jax.random.key(0), x, context)
  found = constraints(jax.make_jaxpr(devices._whole(step))(params, x, None).jaxpr)
  assert set(found) == ({(("data", "fsdp"),)} if kept else set())
  assert collectives.split_rows(x) is x  # no mesh, no constraint


def test_a_constraint_reaches_the_compiled_program():
  """split_rows of a batch that arrives replicated: every device computes its own rows only."""
  devices = make_parallel("jit", fsdp=2)

  def step(state, batch, rng, *, axis):
    return state, {"x": collectives.split_rows(batch)}

  run = jax.jit(devices._whole(step))
  _, metrics = run((), jax.device_put(jnp.zeros((8, 4)), devices._replicated), None)
  assert metrics["x"].sharding.is_equivalent_to(devices._batch, 2)
