"""Labels as users write them: a class number, a class name, or "none" for the null class."""

import numpy as np

from imgtx_jax.errors import UserError


def parse_label(word, class_names, flag):
  """Returns the label of one word, int; flag: where it was written, for the UserError."""
  if word in class_names:
    return class_names.index(word)
  if word == "none":
    return len(class_names)
  if word.isdecimal() and int(word) < len(class_names):
    return int(word)
  raise UserError(
    f"{flag}={word} is no class; choose 0 … {len(class_names) - 1}, a class name such as "
    f"{class_names[0]!r}, or none"
  )


def parse_labels(text, class_names, count):
  """Returns labels int [count]: of the words between commas in turn, or else of all classes in
  turn."""
  words = [word.strip() for word in text.split(",") if word.strip()]
  labels = [parse_label(word, class_names, "--labels") for word in words]
  return np.resize(labels or np.arange(len(class_names)), count).astype(np.int32)
