"""Parses labels: a class number, a class name, or "none" for the null class."""

import numpy as np

from imgtx_jax.errors import UserError

_DIGITS = 20  # of a number of a class; int() refuses thousands


def parse_label(word, class_names, flag):
  """Parses one label to int; raises UserError, which names the flag, for any other word."""
  if word in class_names:
    return class_names.index(word)
  if word == "none":
    return len(class_names)
  if word.isdecimal() and len(word) < _DIGITS and int(word) < len(class_names):
    return int(word)
  raise UserError(
    f"{flag}={word[:80]} is no class; choose 0 … {len(class_names) - 1}, a class name such as "
    f"{class_names[0]!r}, or none"
  )


def parse_labels(text, class_names, count):
  """Parses labels separated by commas to int32 [count].

  They are repeated in turn; an empty text stands for all classes. Raises UserError for other words.
  """
  words = [word.strip() for word in text.split(",") if word.strip()]
  labels = [parse_label(word, class_names, "--labels") for word in words]
  return np.resize(labels or np.arange(len(class_names)), count).astype(np.int32)
