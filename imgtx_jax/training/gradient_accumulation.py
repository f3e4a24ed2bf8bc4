"""A batch in parts, one after the other: the memory of one part, the result of the whole."""

import jax
import jax.numpy as jnp


def mean_over_parts(fn, batch, parts):
  """The mean of fn(part of the batch) → tree of means over its examples, over equal parts.

  batch: arrays [B, …], B a multiple of parts. Every part has rows of all devices that the batch is
  split over: part i is the rows i, i + parts, …
  """
  if parts == 1:
    return fn(batch)
  split = jax.tree.map(
    lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )  # [parts, B / parts, …]
  shapes = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], split))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, part):
    return jax.tree.map(lambda a, b: a + b, total, fn(part)), None

  total, _ = jax.lax.scan(add, zeros, split)
  return jax.tree.map(lambda x: x / parts, total)
