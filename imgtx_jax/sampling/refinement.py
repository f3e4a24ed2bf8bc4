"""Refinement: gradient ascent of condition vectors on the discriminator's score."""

import jax
import jax.numpy as jnp

from imgtx_jax.losses import cross_entropy as code_losses


def realness(verdict, labels, classes):
  """Returns the score [B] that refinement maximises.

  It is the real logit plus the log-probability of the label int [B], or the logit alone for the
  null label, `classes`.
  """
  class_loss = code_losses.class_cross_entropy(verdict.class_logits, labels, classes)
  return verdict.logit - class_loss


def refine(score, vectors, options):
  """Maximises a score over condition vectors.

  Steps follow the normalised gradient of all vectors of an image together; its length is ignored
  because logits have no scale. After each step every vector is projected to within refine_radius of
  its start, near which the generator was trained. An image keeps the vectors with its best score,
  including the first, so that no score decreases.

  Args:
    score: function of vectors [B, M, D] to [B]; entry b must depend only on image b.
    vectors: [B, M, D].
    options: SamplingOptions.

  Returns:
    float32 [B, M, D].
  """
  start = vectors.astype(jnp.float32)
  length = options.refine_rate * _norm(start, (1, 2))  # [B, 1, 1]
  reach = options.refine_radius * _norm(start, 2)  # [B, M, 1]

  def total(change):
    scores = score(start + change)
    return jnp.sum(scores), scores

  def keep_better(best, scores, change):
    better = scores > best[0]
    return jnp.where(better, scores, best[0]), jnp.where(better[:, None, None], change, best[1])

  def climb(carry, _):
    change, best = carry
    grads, scores = jax.grad(total, has_aux=True)(change)
    best = keep_better(best, scores, change)
    change = change + length * grads / jnp.maximum(_norm(grads, (1, 2)), 1e-12)
    change = change * jnp.minimum(1.0, reach / jnp.maximum(_norm(change, 2), 1e-12))
    return (change, best), None

  zeros = jnp.zeros_like(start)
  worst = jnp.full(len(start), -jnp.inf), zeros
  (change, best), _ = jax.lax.scan(climb, (zeros, worst), length=options.refine_steps)
  return start + keep_better(best, score(start + change), change)[1]


def _norm(x, axes):
  return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
