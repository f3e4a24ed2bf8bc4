"""Gradient accumulation: a batch in parts takes the memory of one part."""

import jax
import jax.numpy as jnp


def mean_over_parts(fn, batch, parts):
  """Returns the mean of fn(part) over equal parts of a batch, computed one after the other.

  Part i has the rows i, i + parts, …, so that every part is split over all devices as the batch is.

  Args:
    fn: a function of a part that returns a tree of means over its examples.
    batch: a tree of arrays [B, …].
    parts: a divisor of B.
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
