"""Optimizers from the config: one optax chain per player."""

import dataclasses
import re

import jax
import optax

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """AdamW's options and its learning-rate schedule: config.optimizer under a stage's own block."""

  learning_rate: float
  schedule: str = "constant"
  warmup_steps: int = 0
  end_lr_ratio: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 0.0


def learning_rate(options, total_steps):
  """Returns the learning rate schedule of one player: a linear warm-up, then options.schedule.

  "cosine" ends at options.end_lr_ratio of the peak.
  """
  peak = options.learning_rate
  warmup = min(options.warmup_steps, max(total_steps - 1, 0))
  if options.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif options.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, max(total_steps - warmup, 1), alpha=options.end_lr_ratio
    )
  else:
    raise ValueError(f"unknown schedule {options.schedule!r}: one of {', '.join(SCHEDULES)}")
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decay_mask(params):
  """Returns a tree that is True for matrices and kernels, which weight decay applies to.

  The layer axis of scanned layers does not count: a norm's [L, D] scale is a vector.
  """

  def is_matrix(path, leaf):
    names = [str(getattr(p, "key", p)) for p in path]
    return leaf.ndim - ("layers" in names) >= 2

  return jax.tree_util.tree_map_with_path(is_matrix, params)


def update(tx, grads, opt_state, params, rate):
  """Returns (params, opt_state) after one step of tx with its learning rate times `rate`."""
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), opt_state


def make(options, total_steps, freeze=""):
  """Returns the optimizer of one player: clipping by global norm, then AdamW.

  Parameters whose path matches the regex freeze keep their values and have no moments.
  """
  rate = learning_rate(options, total_steps)
  chain = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
  chain.append(
    optax.adamw(
      rate,
      b1=options.beta1,
      b2=options.beta2,
      eps=options.epsilon,
      weight_decay=options.weight_decay,
      mask=decay_mask,
    )
  )
  tx = optax.chain(*chain)
  if not freeze:
    return tx

  def label(path, _):
    name = "/".join(str(getattr(p, "key", p)) for p in path)
    return "frozen" if re.search(freeze, name) else "trained"

  return optax.multi_transform(
    {"trained": tx, "frozen": optax.set_to_zero()},
    lambda params: jax.tree_util.tree_map_with_path(label, params),
  )
