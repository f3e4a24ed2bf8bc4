"""Blocks that the configuration repeats, and the one of the convolutional tokenizer."""

import ml_collections

from imgtx_jax.errors import UserError
from imgtx_jax.models.vqgan import GROUPS


def trunk(width, layers, heads, **overrides):
  """Hyperparameters of one Transformer. hidden 0 means 8/3 of the width."""
  values = dict(
    width=width,
    layers=layers,
    heads=heads,
    hidden=0,
    qk_norm=False,
    layer_scale=0.0,
    implementation="xla",
    remat="none",
  )
  return ml_collections.ConfigDict(values | overrides)


def optimizer(learning_rate, **overrides):
  """Options of optim.make."""
  values = dict(
    learning_rate=learning_rate,
    schedule="constant",
    warmup_steps=100,
    final_share=0.0,
    inverse_rate=1e-5,
    width_base=0,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.05,
    clip_norm=1.0,
    freeze="",
  )
  return ml_collections.ConfigDict(values | overrides)


def adversary(learning_rate):
  """Options of a player against a discriminator, shared by the stages that have one."""
  return dict(
    loss="relativistic",
    # R1 and R2: "exact", or "difference" (finite differences over a share of the batch).
    penalty="difference",
    penalty_weight=0.1,
    penalty_sigma=0.01,
    penalty_share=0.25,
    augment=("color", "translation"),
    optimizer=optimizer(learning_rate, beta1=0.0, beta2=0.99, weight_decay=0.0),
  )


def vqgan():
  """Hyperparameters of the convolutional tokenizer; the defaults are LlamaGen's VQ-16."""
  return ml_collections.ConfigDict(
    dict(
      channels=128,
      multipliers=(1, 1, 2, 2, 4),  # of channels, a level; the image halves between two levels
      z_channels=256,
      encoder_blocks=2,
      decoder_blocks=3,
    )
  )


def check_vqgan(config):
  """Raises UserError for the first value of config.vqgan that cannot work."""
  options = config.vqgan
  for key in ("z_channels", "encoder_blocks", "decoder_blocks"):
    if options[key] < 1:
      raise UserError(f"config.vqgan.{key}={options[key]} is under 1; set it to 1 or more")
  multipliers = tuple(options.multipliers)
  if not multipliers or min(multipliers) < 1:
    raise UserError(
      f"config.vqgan.multipliers={multipliers} must be one number of 1 or more for each level"
    )
  if options.channels < 1 or options.channels % GROUPS:
    raise UserError(
      f"config.vqgan.channels={options.channels} is no multiple of {GROUPS}, the groups of its "
      f"norms; choose {GROUPS}, {2 * GROUPS} or more"
    )
  patch = 2 ** (len(multipliers) - 1)
  if config.patch != patch:
    raise UserError(
      f"config.patch={config.patch} is not {patch}, the pixels a code of the {len(multipliers)} "
      f"levels in config.vqgan.multipliers; set it to {patch}, or change the levels"
    )
