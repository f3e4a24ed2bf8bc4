"""Paths as users write them: "~" expanded, made absolute, remote ones refused; the cache folder."""

import os
import re
from pathlib import Path

from imgtx_jax.errors import UserError

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LONGEST = 255  # bytes of a name, on the usual file systems


def expand(text):
  """A path with its "~" expanded; ValueError, in one line, for one that cannot be used."""
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
  """A path as an absolute one, "" for ""; ValueError as for expand."""
  return os.path.abspath(expand(text)) if text else text


def cache_folder():
  """Where what several work directories share is kept: $IMGTX_CACHE, else ~/.cache/imgtx_jax; None
  where there is no home folder, as in containers."""
  try:
    given = absolute(os.environ.get("IMGTX_CACHE", ""))
  except ValueError as error:
    raise UserError(f"IMGTX_CACHE={os.environ['IMGTX_CACHE']}: {error}") from error
  home = os.path.expanduser("~")
  if given or home.startswith("~"):
    return Path(given) if given else None
  return Path(home, ".cache", "imgtx_jax")
