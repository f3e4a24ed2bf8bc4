"""What a training step carries from one step to the next."""

from typing import Any

import flax
import jax


@flax.struct.dataclass
class TrainState:
  """Everything a stage's step reads and writes.

  params, opt_state and ema are keyed by network or player; variables holds arrays without a
  gradient (code usage, the bank of sampled codes). All of these are checkpointed. frozen holds the
  networks of earlier stages and pre-trained features: arguments of the step, never checkpointed.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: dict[str, Any]
  ema: dict[str, Any]
  variables: dict[str, Any]
  frozen: dict[str, Any]


def update_ema(ema, params, step, decay):
  """The moving average after one more step; both trees alike, step counted from 0.

  The decay warms up as (1 + step) / (10 + step), so that the average does not remember the
  initial weights of short runs.
  """
  rate = 1.0 - jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)
