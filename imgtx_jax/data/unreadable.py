"""The count of unreadable images, and the limit that stops a run."""

import threading

from absl import logging

from imgtx_jax.errors import UserError

LIMIT = 0.01
WINDOW = 1000  # the share is taken of at least so many images (of all, if there are fewer)


class CorruptImages:
  """The unreadable images of one source, each named once in the log; shared by the threads."""

  def __init__(self):
    self.seen = 0
    self.names = {}  # by index: the same image counts once, however often it is drawn
    self._lock = threading.Lock()

  def __reduce__(self):
    return CorruptImages, ()  # a pickled source starts counting anew

  @property
  def count(self):
    return len(self.names)

  def add_intact(self):
    with self._lock:
      self.seen += 1

  def add(self, index, name, reason, total):
    """Notes an unreadable image among `total`; UserError when there are too many of them."""
    with self._lock:
      self.seen += 1
      if index not in self.names:
        self.names[index] = name
        logging.warning("Unreadable image skipped: %s (%s)", name, reason)
      self._check(total)

  def take_over(self, names, total):
    """Notes what an earlier pass over all `total` images found: {index: name}."""
    with self._lock:
      self.seen, self.names = total, dict(names)
      self._check(total)

  def _check(self, total):
    # A share of the first few images would stop healthy runs on an unlucky start.
    among = min(total, max(self.seen, WINDOW))
    if self.count >= min(3, total) and self.count > LIMIT * among:
      examples = ", ".join(list(self.names.values())[:5])
      raise UserError(
        f"{self.count} unreadable images among the first {min(self.seen, total)} of {total},"
        f" over the limit of {LIMIT:.0%}: mend or remove them, for example {examples}"
      )
