"""Losses and measures of code prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def next_code(logits, codes):
  """Cross-entropy in nats of logits [B, N, V] at codes int [B, N]; [B], the mean over N."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean(axis=-1)


def bits(nats):
  """Nats as bits."""
  return nats / np.log(2.0)


def entropy_bits(shares):
  """Entropy in bits of a distribution [V]."""
  return -jnp.sum(jnp.where(shares > 0, shares * jnp.log2(jnp.maximum(shares, 1e-30)), 0.0))


def class_cross_entropy(logits, labels, classes):
  """Cross-entropy [B] of logits [B, K] at labels int [B]; 0 where the label is the null class."""
  known = labels < classes
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
  return jnp.where(known, loss, 0.0)


def accuracy(logits, labels):
  """1 where logits [..., K] are largest at labels int [...], else 0; float32."""
  return (jnp.argmax(logits, axis=-1) == labels).astype(jax.numpy.float32)
