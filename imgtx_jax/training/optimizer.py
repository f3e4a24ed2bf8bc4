"""Optimizers from the config: one optax chain per player."""

import re

import jax
import optax

SCHEDULES = ("constant", "cosine", "inverse")


def learning_rate(options, total_steps, width):
  """Returns the learning rate schedule of one player: a linear warm-up, then options.schedule.

  "cosine" ends at options.final_share of the peak; "inverse" is peak / (1 + inverse_rate · step).
  With options.width_base > 0 the peak is that of a model of that width, and scales as
  width_base / width.
  """
  peak = options.learning_rate
  if options.width_base:
    peak = peak * options.width_base / width
  warmup = min(options.warmup_steps, max(total_steps - 1, 0))
  if options.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif options.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, max(total_steps - warmup, 1), alpha=options.final_share
    )
  elif options.schedule == "inverse":
    rate = options.inverse_rate

    def after(step):
      return peak / (1.0 + rate * step)

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


def make(options, total_steps, width):
  """Returns the optimizer of one player: clipping by global norm, then AdamW.

  Parameters whose path matches the regex options.freeze keep their values and have no moments.
  """
  rate = learning_rate(options, total_steps, width)
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
  if not options.freeze:
    return tx

  def label(path, _):
    name = "/".join(str(getattr(p, "key", p)) for p in path)
    return "frozen" if re.search(options.freeze, name) else "trained"

  return optax.multi_transform(
    {"trained": tx, "frozen": optax.set_to_zero()},
    lambda params: jax.tree_util.tree_map_with_path(label, params),
  )
