"""The flags of config.sample's keys (--cfg_scale, --temperature, …), for commands that draw."""

from imgtx_jax.errors import UserError
from imgtx_jax.sampling import autoregressive, options


def define(flags, brief=False):
  """Defines the flags in a FlagGroups; one that is not given leaves the value of the config.

  brief: list them by name alone in --help.
  """
  flags.group("How images are drawn (by default as config.sample says)", brief)
  flags.float("cfg_scale", None, "Classifier-free guidance: 1 is none.")
  flags.enum("guidance", None, autoregressive.GUIDANCE, "Guidance along the codes")
  flags.float("cfg_start", None, "Guidance interval: from this fraction of the codes.")
  flags.float("cfg_stop", None, "Guidance interval: up to this fraction of the codes.")
  flags.float("cfg_power", None, "The power of power-cosine guidance.")
  flags.float("temperature", None, "Of the codes' distribution; 0 draws the likeliest code.")
  flags.integer("top_k", None, "Draw among this many of the likeliest codes; 0: all.")
  flags.float("top_p", None, "Draw among the likeliest codes of this total probability.")
  flags.float("truncation", None, "Scales the generator's noise: 1 is none.")
  flags.float("w_scale", None, "Guidance in modulation space: 1 is none.")
  flags.integer("refine_steps", None, "Gradient steps up the discriminator's logit: 0 is none.")
  flags.float("refine_rate", None, "Their length, relative to the condition vectors.")
  flags.float("refine_radius", None, "How far they may move a vector, relative to its norm.")


def given(flags):
  """Names of the sampling flags that were given."""
  return [name for name in ("guidance", *options.RANGES) if flags[name].value is not None]


def choose(flags, config):
  """Returns the sampling.options.Sampling of the config, with the flags that were given.

  Raises UserError for a value outside its range.
  """
  values = config.sample.to_dict() | {name: flags[name].value for name in given(flags)}
  for name, (least, most, _) in options.RANGES.items():
    if not (least <= values[name] and (most is None or values[name] <= most)):  # NaN too
      raise UserError(f"--{name}={values[name]} is outside {least} … {most or 'the vocabulary'}")
  if values["top_p"] == 0:
    raise UserError("--top_p=0 leaves no code to draw; choose more than 0, or --temperature=0")
  return options.make_sampling(values)
