"""benchmark discriminator: what R1 and R2 cost a step of a stage's discriminator, on random images.

The ways to compute them take turns; the batch is the stage's, and so is all else.

penalties       none; finite differences over a quarter, a half and all of the batch; exact over all
step_seconds    of each: the median over --steps steps
added           the share of a step without penalties that each adds
"""

import dataclasses
import statistics
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.errors import UserError
from imgtx_jax.stages import build

PENALTIES = {
  "none": dict(penalty_weight=0.0, penalty_anneal_steps=0),
  "difference, 1/4": dict(penalty="difference", penalty_stride=4),
  "difference, 1/2": dict(penalty="difference", penalty_stride=2),
  "difference": dict(penalty="difference", penalty_stride=1),
  "exact": dict(penalty="exact", penalty_stride=1),
}


def measure(config, name, classes, steps):
  """The figures above, of the stage `name`."""
  validation.check(config)
  stage = build(name, config, classes)
  if getattr(stage, "adversary", None) is None:
    raise UserError(f"--stage={name} trains no discriminator in this config; try finetune or gan")
  batch, size = stage.batch_size, config.data.image_size
  index = jnp.arange(batch)
  labels = index % classes
  real, fake = (
    jnp.clip(rng.normal(jax.random.key(i), index, (size, size, 3)), -1.0, 1.0) for i in range(2)
  )
  key = jax.random.key(2)
  steppers = []
  for changes in PENALTIES.values():
    adversary = dataclasses.replace(stage.adversary, penalty_every=1, **changes)
    steppers.append(_stepper(adversary, real, fake, labels, key, index))
  rounds = [[step() for step in steppers] for _ in range(steps)]
  median = [statistics.median(column) for column in zip(*rounds, strict=True)]
  return {
    "stage": name,
    "penalties": list(PENALTIES),
    "step_seconds": [s for s in median],
    "added": [s / median[0] - 1.0 for s in median],
    "batch_size": batch,
    "image_size": size,
    "dtype": configs.compute_dtype(config),
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def _stepper(adversary, real, fake, labels, key, index):
  """A function that takes a step of the discriminator and returns its seconds; compiled."""
  state = SimpleNamespace(step=jnp.zeros((), jnp.int32), rate=1.0)
  real, fake = adversary.repeat(real), adversary.repeat(fake)

  @jax.jit
  def update(params, opt_state):
    return adversary.update(params, opt_state, real, fake, labels, key, index, state, None)

  players = adversary.init(key, real[..., :3])
  jax.block_until_ready(update(*players))

  def step():
    nonlocal players
    began = time.monotonic()
    *players, _ = jax.block_until_ready(update(*players))
    return time.monotonic() - began

  return step
