"""Atomic file writing: a kill leaves the old or the new file; a full disk raises a UserError."""

import contextlib
import errno
import os
import re
from pathlib import Path

from imgtx_jax.errors import UserError

_DISK = re.compile("no space left|disk quota|file too large|enospc|edquot|efbig", re.IGNORECASE)


def disk_fault(error):
  """Returns the words in an exception's text that report a full disk or quota, or None."""
  match = _DISK.search(str(error))
  return match and match.group()


@contextlib.contextmanager
def explain_disk(path):
  """Turns errors of a full disk, a spent quota or a path that is not writable into a UserError.

  path: what is written, for the message.
  """
  try:
    yield
  except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror}): name another place, or change its permissions"
    ) from error
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(
      f"no space left on the disk of {path}: free some, then run the same command again; "
      "nothing that was saved before is lost"
    ) from error


@contextlib.contextmanager
def open_atomically(path):
  """Opens a binary file that becomes `path` when the block ends; creates its folders.

  If the block raises, path is left as it was. Raises UserError as explain_disk does.
  """
  path = Path(path)
  # The name has no process id, so that the next run overwrites what a killed one left.
  unfinished = path.with_name(f".{path.name}.tmp")
  with explain_disk(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(unfinished, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(unfinished, path)
    except BaseException:
      unfinished.unlink(missing_ok=True)
      raise


def write_atomically(path, data):
  """Writes data (bytes) to path and creates its folders; path never holds a part of it."""
  with open_atomically(path) as file:
    file.write(data)
