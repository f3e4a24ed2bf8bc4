"""Cross-entropies of codes and classes, and what is reported beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def next_code(logits, codes):
  """Returns the cross-entropy [B] in nats of logits [B, N, V] at codes int [B, N], mean over N."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean(axis=-1)


def bits(nats):
  """Converts nats to bits."""
  return nats / np.log(2.0)


def entropy_bits(probs):
  """Returns the entropy in bits of probabilities [V]; scalar."""
  return -jnp.sum(jnp.where(probs > 0, probs * jnp.log2(jnp.maximum(probs, 1e-30)), 0.0))


def class_cross_entropy(logits, labels, classes):
  """Returns the cross-entropy [B] in nats of logits [B, K] at labels int [B].

  It is 0 where the label is the null class, `classes`.
  """
  known = labels < classes
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
  return jnp.where(known, loss, 0.0)


def accuracy(logits, labels):
  """Returns 1 where logits [..., K] are largest at labels int [...], else 0; float32 [...]."""
  return (jnp.argmax(logits, axis=-1) == labels).astype(jax.numpy.float32)
