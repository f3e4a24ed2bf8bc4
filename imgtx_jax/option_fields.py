"""Options as frozen dataclasses: a field is the one place where an option has its default, its
meaning and its limits. Config blocks, checks and flags are made from the fields."""

import dataclasses


def option(default, help, least=None, most=None, needs=""):
  """A field: its default, what it means, the least and the most it may be (None: no limit), and
  what a stage must draw with for it to matter (sampling only)."""
  metadata = dict(help=help, least=least, most=most, needs=needs)
  return dataclasses.field(default=default, metadata=metadata)


def read(cls, *blocks, **more):
  """A cls from config blocks. A key of several blocks counts as the last has it; a key that is no
  field of cls is left out."""
  names = {field.name for field in dataclasses.fields(cls)}
  values = {key: value for own in blocks for key, value in own.items() if key in names}
  return cls(**values | more)


def ranges(cls, prefix=""):
  """{prefix + field: (least, most)} of the fields of cls that have a limit."""
  return {
    prefix + field.name: (field.metadata["least"], field.metadata["most"])
    for field in dataclasses.fields(cls)
    if field.metadata["least"] is not None
  }
