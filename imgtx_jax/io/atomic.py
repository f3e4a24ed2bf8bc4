"""Writing files so that a kill leaves the old or the new one, and a full disk one clear line."""

import contextlib
import errno
import os
import re
from pathlib import Path

from imgtx_jax.errors import UserError

_DISK = re.compile("no space left|disk quota|file too large|enospc|edquot|efbig", re.IGNORECASE)


def disk_fault(error):
  """The words by which an error of any library tells of a full disk, or None."""
  found = _DISK.search(str(error))
  return found and found.group()


@contextlib.contextmanager
def explain_disk(path):
  """Turns 'no space left' on path's disk, a spent quota or a path that cannot be written into a
  UserError."""
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
  """A binary file to write into, its folders made: path when the block ends, and nothing when an
  exception ends it."""
  path = Path(path)
  # A name of its own, without a process id: what a killed run leaves is overwritten by the next.
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
  """Writes data (bytes) to path, making its folders; path never holds half of it."""
  with open_atomically(path) as file:
    file.write(data)
