"""Checks outputs before the work: whether they can be written, and which files exist already."""

import os
from pathlib import Path

from imgtx_jax.errors import UserError
from imgtx_jax.io.image_files import SUFFIXES

_LONGEST = 250  # bytes of a file's name: the limit is mostly 255, and .tmp names have 5 more


def check_file(flag, path, suffixes=()):
  """Raises UserError unless a file can be written to path.

  Args:
    flag: that gave the path, for the message.
    path: of the file; "" for none.
    suffixes: allowed suffixes, or () for any.
  """
  if not path:
    return
  if suffixes and Path(path).suffix.lower() not in suffixes:
    raise UserError(f"{flag}={path} must end in {' or '.join(suffixes)}")
  if os.path.isdir(path):
    raise UserError(f"{flag}={path} is a folder: name a file in it")
  check_name_length(path)
  _check_writable(flag, path, os.path.dirname(os.path.abspath(path)))


def check_folder(flag, path):
  """Raises UserError unless files can be written into the folder path, which need not exist.

  flag: that gave the path. "" stands for no folder.
  """
  if path:
    _check_writable(flag, path, os.path.abspath(path))


def _check_writable(flag, path, folder):
  while not os.path.lexists(folder):
    folder = os.path.dirname(folder)
  if not os.path.isdir(folder):
    raise UserError(f"{flag}={path}: {folder} is a file, not a folder; name another place")
  if not os.access(folder, os.W_OK | os.X_OK):
    raise UserError(
      f"{flag}={path}: {folder} cannot be written; name another place, or change its permissions"
    )


def check_name_length(path):
  """Raises UserError if a file's name is too long to be written."""
  if len(os.fsencode(Path(path).name)) > _LONGEST:
    raise UserError(f"{path}: its name has over {_LONGEST} bytes; give the inputs shorter names")


def other_images(folder, names):
  """Returns the sorted names of the images in a folder that are not among `names`."""
  if not os.path.isdir(folder):
    return []
  there = {name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES)}
  return sorted(name for name in there - set(names) if not name.startswith("."))
