"""The flags of config.sample's keys (--cfg_scale, --temperature, …), for commands that draw."""

from imgtx_jax.errors import UserError
from imgtx_jax.option_fields import ranges
from imgtx_jax.sampling.options import FIELDS, GUIDANCE, SamplingOptions


def define(flags, brief=False):
  """Defines the flags in a FlagGroups; one that is not given leaves the value of the config.

  brief: list them by name alone in --help.
  """
  flags.group("How images are drawn (by default as config.sample says)", brief)
  kinds = {float: flags.float, int: flags.integer}
  for name, field in FIELDS.items():
    if name == "guidance":
      flags.enum(name, None, GUIDANCE, field.metadata["help"])
    else:
      kinds[type(field.default)](name, None, field.metadata["help"])


def given(flags):
  """Returns the names of the sampling flags that were given."""
  return [name for name in FIELDS if flags[name].value is not None]


def choose(flags, config):
  """Returns the SamplingOptions of the config, with the flags that were given.

  Raises UserError for a value outside its range.
  """
  values = config.sample.to_dict() | {name: flags[name].value for name in given(flags)}
  for name, (least, most) in ranges(SamplingOptions).items():
    if not (least <= values[name] and (most is None or values[name] <= most)):  # NaN too
      raise UserError(f"--{name}={values[name]} is outside {least} … {most or 'the vocabulary'}")
  if values["top_p"] == 0:
    raise UserError("--top_p=0 leaves no code to draw; choose more than 0, or --temperature=0")
  return SamplingOptions(**values)
