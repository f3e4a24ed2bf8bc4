"""The flags of config.sample's keys (--cfg_scale, --temperature, …), for commands that draw."""

from absl import flags

from imgtx_jax.errors import UserError
from imgtx_jax.sampling import autoregressive, options


def define():
  """Defines the flags; a flag that is not given leaves the value of the config."""
  flags.DEFINE_float("cfg_scale", None, "Guidance: 1 is none.")
  flags.DEFINE_enum("guidance", None, autoregressive.GUIDANCE, "How guidance goes over the codes.")
  flags.DEFINE_float("cfg_start", None, "Guidance interval: from this fraction of the codes.")
  flags.DEFINE_float("cfg_stop", None, "Guidance interval: up to this fraction of the codes.")
  flags.DEFINE_float("cfg_power", None, "The power of power-cosine guidance.")
  flags.DEFINE_float("temperature", None, "0 draws the likeliest code.")
  flags.DEFINE_integer("top_k", None, "Draw among this many codes; 0: all.")
  flags.DEFINE_float("top_p", None, "Draw within this probability.")
  flags.DEFINE_float("truncation", None, "The generator's noise is scaled by this: 1 is none.")
  flags.DEFINE_float("w_scale", None, "Guidance in modulation space: 1 is none.")
  flags.DEFINE_integer("refine_steps", None, "Steps uphill on the discriminator: 0 is none.")
  flags.DEFINE_float("refine_rate", None, "Their length, relative to the condition vectors.")
  flags.DEFINE_float("refine_radius", None, "How far they may go from a vector, relative to it.")


def given(flags):
  """Names of the sampling flags that were given."""
  return [name for name in ("guidance", *options.RANGES) if flags[name].value is not None]


def choose(flags, config):
  """Returns the sampling.options.Sampling of the config, with the flags that were given.

  Raises UserError for a value outside its range.
  """
  values = config.sample.to_dict() | {name: flags[name].value for name in given(flags)}
  for name, (least, most, _) in options.RANGES.items():
    if values[name] < least or (most is not None and values[name] > most):
      raise UserError(f"--{name}={values[name]} is outside {least} … {most or 'the vocabulary'}")
  if values["top_p"] == 0:
    raise UserError("--top_p=0 leaves no code to draw; choose more than 0, or --temperature=0")
  return options.make_sampling(values)
