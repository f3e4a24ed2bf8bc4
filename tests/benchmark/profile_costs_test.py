import jax
import jax.numpy as jnp
import pytest

from imgtx_jax.benchmark import profile_costs


def test_the_largest_of_a_trace(tmp_path):
  assert profile_costs.largest(tmp_path) == []
  x = jnp.ones((500, 500))
  run = jax.jit(lambda x: jnp.tanh(x @ x @ x) + jnp.sort(x[:2]).sum())
  run(x).block_until_ready()
  with jax.profiler.trace(tmp_path):
    run(x).block_until_ready()
  costs = profile_costs.largest(tmp_path, count=50)
  fractions = [cost["fraction"] for cost in costs]
  assert fractions == sorted(fractions, reverse=True) and sum(fractions) == pytest.approx(1)
  names = [cost["name"] for cost in costs]
  assert len(set(names)) == len(names) and not [n for n in names if n[-1].isdigit()]
  assert profile_costs.largest(tmp_path, count=1) == costs[:1]
