"""Checks --config and its overrides before ml_collections parses them, for errors in one line.

config_flags prints tracebacks of the config file, and names neither the keys that exist nor the
type that it expected.
"""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import os
import re
import traceback
from pathlib import Path

import ml_collections

from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError, first_line

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def check(argv):
  """Raises UserError if the config file or an override in argv cannot be used."""
  specs = [a.partition("=")[2] for a in argv if a.startswith(("--config=", "-config="))]
  specs += [b for a, b in zip(argv, argv[1:], strict=False) if a in ("--config", "-config")]
  if not specs:
    return
  defaults = _flatten(load(specs[-1]))
  for argument, following in zip(argv, [*argv[1:], None], strict=True):
    match = _OVERRIDE.fullmatch(argument)
    if match:
      is_switch = isinstance(defaults.get(match[1]), bool) and match[2] is None
      value = "True" if is_switch else following if match[2] is None else match[2]
      _check_override(match[1], value, defaults)


def load(spec):
  """Returns the ConfigDict of "FILE.py" or "FILE.py:argument"; raises UserError for a file that
  fails, or whose config has other keys than the default one."""
  path, colon, argument = spec.partition(":")
  file = Path(path)
  if file.suffix != ".py" or not file.is_file():
    found = sorted(str(p) for p in Path("configs").glob("*.py"))
    hint = f"configs here: {', '.join(found)}" if found else "name a .py file with get_config"
    raise UserError(f"--config={path} is no config file; {hint}")
  module_spec = importlib.util.spec_from_file_location("imgtx_jax_config", file)
  module = importlib.util.module_from_spec(module_spec)
  with _one_line(path):
    module_spec.loader.exec_module(module)
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise UserError(f"--config={path} defines no get_config(); see configs/quickstart.py")
  if colon and not inspect.signature(get_config).parameters:
    raise UserError(f"--config={path} takes no argument, but :{argument} was given; leave it out")
  with _one_line(path):
    config = get_config(argument) if colon else get_config()
    _check_keys(path, config)
  return config


@contextlib.contextmanager
def _one_line(path):
  """Turns what a config file raises into a UserError that names the line."""
  try:
    yield
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == os.path.abspath(path)]
    line = getattr(error, "lineno", None) or (lines or [None])[-1]
    place = f", line {line}" if line else ""
    raise UserError(
      f"--config={path}{place}: {type(error).__name__}: {first_line(error)}; mend the file"
    ) from error


def _check_keys(path, config):
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"--config={path}: get_config() returns {type(config).__name__}, and a ConfigDict is needed; "
      "start from imgtx_jax.config.defaults.default()"
    )
  ours, known = set(configs.flatten(config)), set(configs.flatten(configs.default()))
  if unknown := sorted(ours - known):
    raise UserError(f"--config={path} sets {unknown[0]}, {_no_key(unknown[0], known)}")
  if missing := sorted(known - ours):
    raise UserError(f"--config={path} lacks {missing[0]}; start from the default config")


def _no_key(key, known):
  """Returns "which is no key", and what may be meant."""
  close = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.5)
  close = close or [k for k in sorted(known) if k.split(".")[-1] == key.split(".")[-1]][:3]
  hint = f"did you mean {' or '.join(close)}?" if close else "see imgtx_jax/config/defaults.py"
  return f"which is no key of the config; {hint}"


def _flatten(config):
  flat = dict(configs.flatten(config))
  tuples = {key: tuple(value) for key, value in flat.items() if isinstance(value, list)}
  return flat | tuples


def _check_override(key, text, defaults):
  if key not in defaults:
    raise UserError(f"--config.{key}, {_no_key(key, defaults)}")
  kind = type(defaults[key])
  if kind is str or text is None:
    return
  try:
    value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = text
  fits = _is_a(value, kind)
  if fits and kind is tuple and defaults[key]:
    fits = all(_is_a(element, type(defaults[key][0])) for element in value)
  if not fits:
    raise UserError(
      f"--config.{key}={text} is no {kind.__name__}; the default is {defaults[key]!r}: "
      "write a value of that type"
    )


def _is_a(value, kind):
  allowed = {float: (int, float), tuple: (tuple, list)}.get(kind, (kind,))
  return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
