import functools

import jax
import jax.numpy as jnp
import pytest

from imgtx_jax.benchmark import model_flops
from imgtx_jax.models import layers, transformer


def shaped(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products():
  assert model_flops.count(jnp.matmul, shaped(3, 5), shaped(5, 7)) == 2 * 3 * 5 * 7
  batched = functools.partial(jnp.einsum, "bnhk,bmhk->bhnm")
  assert model_flops.count(batched, shaped(2, 3, 4, 5), shaped(2, 6, 4, 5)) == 2 * 2 * 4 * 3 * 6 * 5
  assert model_flops.count(jnp.add, shaped(9), shaped(9)) == 0

  def loss(x, w):
    return jnp.sum(jnp.tanh(x @ w) ** 2)

  # Forward, the gradient of x, the gradient of w.
  both = jax.grad(loss, argnums=(0, 1))
  assert model_flops.count(both, shaped(3, 5), shaped(5, 7)) == 3 * 2 * 3 * 5 * 7


def convolution(x, w, stride=1, groups=1, padding="VALID"):
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), padding, None, None, ("NHWC", "HWIO", "NHWC"), groups
  )


def test_convolutions():
  x, w = shaped(2, 8, 8, 4), shaped(3, 3, 4, 6)
  assert model_flops.count(convolution, x, w) == 2 * (2 * 6 * 6 * 6) * (3 * 3 * 4)
  grouped = functools.partial(convolution, groups=4)
  assert model_flops.count(grouped, x, shaped(3, 3, 1, 8)) == 2 * (2 * 6 * 6 * 8) * (3 * 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_two_gradients_cost_the_same(stride):
  x, w = shaped(2, 8, 8, 4), shaped(3, 3, 4, 6)
  run = functools.partial(convolution, stride=stride, padding="SAME")
  forward = model_flops.count(run, x, w)
  assert forward == 2 * (2 * (8 // stride) ** 2 * 6) * (3 * 3 * 4)
  gradients = jax.grad(lambda x, w: jnp.sum(run(x, w) ** 2), argnums=(0, 1))
  assert model_flops.count(gradients, x, w) == 3 * forward


def test_loops_and_calls():
  x, w = shaped(4, 4), shaped(4, 4)
  one = 2 * 4**3

  def chain(x, w, times=5):
    return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, w), None), x, length=times)[0]

  assert model_flops.count(chain, x, w) == 5 * one
  nested = functools.partial(jax.lax.fori_loop, 0, 3)
  assert model_flops.count(lambda x, w: nested(lambda _, y: chain(y, w), x), x, w) == 15 * one
  mapped = jax.vmap(jnp.matmul, (0, None))
  assert model_flops.count(mapped, shaped(6, 4, 4), w) == 6 * one
  assert model_flops.count(lambda x: jax.lax.map(lambda y: y @ y, x), shaped(6, 4, 4)) == 6 * one

  def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

  assert model_flops.count(either, x, w) == 2 * one

  def until(x, w):
    return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ w, x)

  assert model_flops.count(until, x, w) == one


def test_custom_gradients_and_remat():
  x, w = shaped(4, 4), shaped(4, 4)
  one = 2 * 4**3

  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
  assert model_flops.count(product, x, w) == one
  assert model_flops.count(jax.grad(lambda x, w: product(x, w).sum(), (0, 1)), x, w) == 3 * one

  def twice(x, w):
    return jnp.sin(jnp.sin(x @ w) @ w)

  def gradient(f):
    return jax.grad(lambda x, w: f(x, w).sum(), (0, 1))

  assert model_flops.count(gradient(twice), x, w) == 6 * one
  assert 6 * one < model_flops.count(gradient(jax.checkpoint(twice)), x, w) <= 8 * one


def test_scanned_layers_count_like_unrolled_ones_and_like_xla():
  block = transformer.BlockConfig(num_heads=2, mlp_dim=64)
  x = shaped(2, 8, 32)
  context = transformer.Context(rope=layers.rope_table(layers.grid_coords(2, 4), 16))
  counts = {}
  for scan in (True, False):
    network = transformer.Transformer(3, block, scan=scan)

    def forward(params, x, network=network):
      return network.apply(params, x, context)[0]

    params = jax.eval_shape(network.init, jax.random.key(0), x, context)
    counts[scan] = model_flops.count(forward, params, x)
  tokens, width = 2 * 8, 32
  per_layer = 2 * tokens * width * (4 * width + 3 * 64) + 2 * 2 * tokens * 8 * width
  assert counts[True] == counts[False] == 3 * per_layer
  # Unrolled, XLA's own count holds everything, also what is not a product.
  cost = jax.jit(forward).lower(params, x).compile().cost_analysis()
  assert 1.0 < cost["flops"] / counts[False] < 1.3
