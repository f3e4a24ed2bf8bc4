"""TrainState, which a training step reads and returns; moving averages of parameters."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class TrainState:
  """Everything that a stage's step reads and writes.

  params, opt_state and ema are keyed by network or player. variables holds arrays without a
  gradient: code usage, the bank of sampled codes. These are checkpointed. frozen holds the networks
  of earlier stages and pre-trained features: arguments of the step, never checkpointed. rate scales
  every learning rate: 1, and less after the loop has fallen back from a collapse.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: dict[str, Any]
  ema: dict[str, Any]
  variables: dict[str, Any]
  frozen: dict[str, Any]
  rate: Any = np.float32(1.0)


def is_finite(state):
  """Returns whether all numbers of a placed state are finite, its frozen networks left out."""
  return bool(_all_finite(state.replace(frozen={})))


@jax.jit
def _all_finite(tree):
  numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]))


def update_ema(ema, params, decay, step=None):
  """Returns the moving average `ema` of `params` after one more step; both are trees of one shape.

  Given the step (from 0), the decay is at most (1 + step) / (10 + step), so that the average does
  not remember random initial weights.
  """
  if step is not None:
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)
