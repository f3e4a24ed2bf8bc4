"""Counts unreadable images and stops a run that has too many."""

import threading

from absl import logging

from imgtx_jax.errors import UserError

LIMIT = 0.01  # largest fraction of unreadable images
MIN_SEEN = 1000  # the fraction is taken of at least this many images, or of all if there are fewer


class CorruptImages:
  """Counts the unreadable images of a source and logs each once; thread-safe.

  seen: number of images read. names: {index: name} of the unreadable ones, each once.
  """

  def __init__(self):
    self.seen = 0
    self.names = {}
    self._lock = threading.Lock()

  def __reduce__(self):
    return CorruptImages, ()  # the count of an unpickled source starts at 0

  @property
  def count(self):
    """Returns the number of unreadable images."""
    return len(self.names)

  def add_intact(self):
    """Counts a readable image."""
    with self._lock:
      self.seen += 1

  def add(self, index, name, reason, total):
    """Counts an unreadable image and logs its name.

    Args:
      index: of the image in the source.
      name: of the image.
      reason: why it is unreadable.
      total: number of images of the source.

    Raises:
      UserError: if more than LIMIT of the images seen are unreadable.
    """
    with self._lock:
      self.seen += 1
      if index not in self.names:
        self.names[index] = name
        logging.warning("Unreadable image skipped: %s (%s)", name, reason)
      self._check(total)

  def take_over(self, names, total):
    """Takes over the unreadable images {index: name} of an earlier pass over all `total` images."""
    with self._lock:
      self.seen, self.names = total, dict(names)
      self._check(total)

  def _check(self, total):
    # A fraction of the first few images would stop healthy runs after an unlucky start.
    among = min(total, max(self.seen, MIN_SEEN))
    if self.count >= min(3, total) and self.count > LIMIT * among:
      examples = ", ".join(list(self.names.values())[:5])
      raise UserError(
        f"{self.count} unreadable images among the first {min(self.seen, total)} of {total},"
        f" over the limit of {LIMIT:.0%}: mend or remove them, for example {examples}"
      )
