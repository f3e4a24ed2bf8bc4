"""Gradient ascent of condition vectors on the discriminator's score, before the image is drawn."""

import dataclasses

import jax
import jax.numpy as jnp

from imgtx_jax.losses import cross_entropy as code_losses


@dataclasses.dataclass(frozen=True)
class Refinement:
  """Options of refine. steps: of gradient ascent, 0 for none; rate: a step's length relative to the
  norm of an image's condition vectors; radius: how far a vector may go, relative to its norm."""

  steps: int = 0
  rate: float = 0.05
  radius: float = 0.2


def realness(verdict, labels, classes):
  """Returns the score [B] that refinement climbs: the real logit plus the log-probability of the
  label int [B]; the logit alone for the null label, `classes`."""
  class_loss = code_losses.class_cross_entropy(verdict.class_logits, labels, classes)
  return verdict.logit - class_loss


def refine(score, vectors, options):
  """Returns condition vectors float32 [B, M, D] after options.steps steps of gradient ascent on
  score(vectors) → [B].

  Entry b of the score must depend on the vectors of image b alone: then each image is refined
  independently of its batch. A step goes along the gradient of all vectors of an image together;
  only its direction counts, for the scale of logits means nothing. After each step every vector is
  brought back to within radius of where it began: near there the generator was trained. An image
  keeps the vectors of its best score, the first ones included, so that no score falls.
  """
  start = vectors.astype(jnp.float32)
  length = options.rate * _norm(start, (1, 2))  # [B, 1, 1]
  reach = options.radius * _norm(start, 2)  # [B, M, 1]

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

  still = jnp.zeros_like(start)
  worst = jnp.full(len(start), -jnp.inf), still
  (change, best), _ = jax.lax.scan(climb, (still, worst), length=options.steps)
  return start + keep_better(best, score(start + change), change)[1]


def _norm(x, axes):
  return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
