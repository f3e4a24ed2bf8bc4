"""Paths as users give them: "~" expanded and made absolute once, where they come in.

Every flag that names a file or a folder is defined by FlagGroups.path or paths, and every config
key that does stands in PATH_KEYS of config/defaults.py. Remote paths are refused: checkpoints could
lie there, the other files of a work directory could not.
"""

import functools
import operator
import re

from absl import flags

from imgtx_jax.config.defaults import PATH_KEYS
from imgtx_jax.data.sources import split_paths
from imgtx_jax.errors import UserError
from imgtx_jax.io import local_paths

_CONFIG_FLAGS = ("--config", "-config")


def expand_config_flag(argv):
  """Returns argv with "~" expanded in the file of --config=FILE.py[:ARGUMENT].

  The flag is ml_collections' own, so no parser of this module reads it. Raises UserError for a file
  that is no local path.
  """
  expanded = []
  for before, word in zip([None, *argv], argv, strict=False):
    flag, equals, spec = word.partition("=")
    if equals and flag in _CONFIG_FLAGS:
      word = f"{flag}={_expand_spec(spec)}"
    elif before in _CONFIG_FLAGS:
      word = _expand_spec(word)
    expanded.append(word)
  return expanded


def _expand_spec(spec):
  file, colon, argument = spec.partition(":")
  try:
    return f"{local_paths.expand(file)}{colon}{argument}"
  except ValueError as error:
    raise UserError(f"--config={spec}: {error}") from error


def expand_argument(text):
  """Expands "~" in a path that is an argument, not a flag; raises UserError for a remote one."""
  try:
    return local_paths.expand(text)
  except ValueError as error:
    raise UserError(f"{text}: {error}") from error


class _Parser(flags.ArgumentParser):
  """words: what the flag may be beside a path; named: it is NAME=PATH."""

  def __init__(self, words, named):
    super().__init__()
    self._words, self._named = words, named

  def parse(self, argument):
    name, equals, path = argument.partition("=") if self._named else ("", "", argument)
    if self._words and re.fullmatch(self._words, argument):
      return argument
    return f"{name}{equals}{local_paths.absolute(path)}"


def parser(words="", named=False):
  """Returns an absl parser of a flag that is a path, absolute once it is parsed.

  words: a pattern of values that are no paths; named: whether the flag is NAME=PATH.
  """
  return _Parser(words, named)


def resolve(config):
  """Makes the paths in a config absolute, in place.

  Raises UserError that names the key of a path that cannot be used.
  """
  for key in PATH_KEYS:
    *rooms, leaf = key.split(".")
    options = functools.reduce(operator.getitem, rooms, config)
    try:
      options[leaf] = _resolve(options, leaf)
    except ValueError as error:
      raise UserError(f"config.{key}={options[leaf]}: {error}") from error


def _resolve(options, leaf):
  text = options[leaf]
  if leaf == "code_cache" and text == "auto":
    return text
  if leaf == "path" and options.source == "images":
    return ",".join(local_paths.absolute(path) for path in split_paths(text))
  return local_paths.absolute(text)
