"""Checks users' paths: expands "~", makes them absolute, refuses remote ones; the cache folder."""

import os
import re
from pathlib import Path

from imgtx_jax.errors import UserError

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LONGEST = 255  # bytes of a name, on the usual file systems


def expand(text):
  """Expands "~" in a path; raises a ValueError of one line if the path cannot be used."""
  if _REMOTE.match(text):
    raise ValueError(
      "paths must be on this machine's file systems: mount the bucket as a folder (gcsfuse, "
      "s3fs), or copy it"
    )
  if "\0" in text or max(len(os.fsencode(part)) for part in text.split("/")) > _LONGEST:
    raise ValueError(f"no path has an empty byte or a name of over {_LONGEST} bytes")
  expanded = os.path.expanduser(text)
  if expanded.startswith("~"):
    raise ValueError("there is no such home folder here: write the whole path")
  return expanded


def absolute(text):
  """Returns an absolute path, or "" for ""; raises ValueError as expand does."""
  return os.path.abspath(expand(text)) if text else text


def cache_folder():
  """Returns the folder that work directories share: $IMGTX_CACHE or ~/.cache/imgtx_jax.

  It is None if there is no home folder, as in some containers. Raises UserError if $IMGTX_CACHE is
  no usable path.
  """
  try:
    given = absolute(os.environ.get("IMGTX_CACHE", ""))
  except ValueError as error:
    raise UserError(f"IMGTX_CACHE={os.environ['IMGTX_CACHE']}: {error}") from error
  home = os.path.expanduser("~")
  if given or home.startswith("~"):
    return Path(given) if given else None
  return Path(home, ".cache", "imgtx_jax")
