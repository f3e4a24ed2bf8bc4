import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from imgtx_jax.training.recompilation import ArgumentWatch


def batch(rows=4, device=0, dtype=jnp.int32):
  place = SingleDeviceSharding(jax.devices()[device])
  return {"batch": {k: jax.device_put(jnp.zeros(rows, dtype), place) for k in ("image", "label")}}


def test_says_what_is_new():
  watch = ArgumentWatch()
  assert watch.changes(batch()) == watch.changes(batch()) == ""
  said = watch.changes(batch(rows=3))
  assert said == "batch/image was (4,) and is (3,), and 1 more arrays differ"
  assert watch.changes(batch()) == watch.changes(batch(rows=3)) == ""  # both are compiled
  assert "was int32 and is float32" in watch.changes(batch(3, dtype=jnp.float32))
  assert "SingleDeviceSharding" in watch.changes(batch(3, 1, jnp.float32))
  assert "another tree of 0 arrays, not 2" in watch.changes({})
  watch = ArgumentWatch()
  watch.changes(jnp.ones(()))
  assert watch.changes(jnp.asarray(1.0)) == " was of a fixed type and is weakly typed"


def test_says_so_whenever_jit_compiles():
  watch, compiled = ArgumentWatch(), jax.jit(lambda x: x)
  for args in (batch(), batch(), batch(3), batch(), batch(3, 1), batch(3, 1, jnp.float32)):
    before = compiled._cache_size()
    compiled(args)
    assert bool(watch.changes(args)) == (0 < before < compiled._cache_size())
