"""Output streams that never stop the work: not by a closed pipe or terminal, nor a full disk, nor a
locale that lacks a character."""

import contextlib
import errno
import os
import sys

# Nobody will read what is written from now on.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)


class LastingStream:
  """A text stream whose writes do not fail.

  Text that cannot be written is dropped; once the reader is gone, all later text is.
  """

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text):
    with self._dropping():
      self._stream.write(text)
    return len(text)

  def writelines(self, lines):
    for line in lines:
      self.write(line)

  def flush(self):
    with self._dropping():
      self._stream.flush()

  @contextlib.contextmanager
  def _dropping(self):
    try:
      yield
    except OSError as error:
      if error.errno in _GONE:
        self._discard()
    except ValueError:  # the stream is closed
      self._stream = open(os.devnull, "w")  # noqa: SIM115  for the rest of this process

  def _discard(self):
    """Points the file descriptor to nowhere: Python flushes the stream once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)


def protect():
  """Makes stdout and stderr LastingStreams for the rest of this process."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None or stream.closed:  # None: closed before Python started
      stream = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
    if not isinstance(stream, LastingStream):
      setattr(sys, name, LastingStream(stream))
