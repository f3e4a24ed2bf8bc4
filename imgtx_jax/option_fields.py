"""Options as frozen dataclasses, whose fields hold default, description and limits of each option.

Config blocks, checks and flags are made from the fields."""

import dataclasses


def option(default, help, least=None, most=None, needs=""):
  """Returns a dataclass field.

  help: its description. least, most: its limits, None for none. needs: what a stage must draw with
  for the option to matter (sampling only; see Stage.draws_with).
  """
  metadata = dict(help=help, least=least, most=most, needs=needs)
  return dataclasses.field(default=default, metadata=metadata)


def read(cls, *blocks, **more):
  """Returns a cls from config blocks; the last block that has a key counts.

  Keys that are no field of cls are left out.
  """
  names = {field.name for field in dataclasses.fields(cls)}
  values = {key: value for own in blocks for key, value in own.items() if key in names}
  return cls(**values | more)


def ranges(cls, prefix=""):
  """Returns {prefix + field: (least, most)} of the fields of cls that have a limit."""
  return {
    prefix + field.name: (field.metadata["least"], field.metadata["most"])
    for field in dataclasses.fields(cls)
    if field.metadata["least"] is not None
  }
