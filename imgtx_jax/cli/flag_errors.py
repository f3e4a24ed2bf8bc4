"""Checks --config and its overrides before ml_collections parses them, for errors in one line.

config_flags prints tracebacks of the config file, and names neither the keys that exist nor the
type that it expected.
"""

import ast
import difflib
import importlib.util
import inspect
import re
from pathlib import Path

from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError

_OVERRIDE = re.compile(r"--(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def check(argv):
  """Raises UserError if the config file or an override in argv cannot be used."""
  specs = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
  specs += [b for a, b in zip(argv, argv[1:], strict=False) if a == "--config"]
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
  """The ConfigDict of "FILE.py" or "FILE.py:argument"."""
  path, colon, argument = spec.partition(":")
  file = Path(path)
  if file.suffix != ".py" or not file.is_file():
    found = sorted(str(p) for p in Path("configs").glob("*.py"))
    hint = f"configs here: {', '.join(found)}" if found else "name a .py file with get_config"
    raise UserError(f"--config={path} is no config file; {hint}")
  module_spec = importlib.util.spec_from_file_location("imgtx_jax_config", file)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise UserError(f"--config={path} defines no get_config(); see configs/quickstart.py")
  if colon and not inspect.signature(module.get_config).parameters:
    raise UserError(f"--config={path} takes no argument, but :{argument} was given; leave it out")
  return module.get_config(argument) if colon else module.get_config()


def _flatten(config):
  flat = dict(configs.flatten(config))
  tuples = {key: tuple(value) for key, value in flat.items() if isinstance(value, list)}
  return flat | tuples


def _check_override(key, text, defaults):
  if key not in defaults:
    close = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5)
    close = close or [k for k in defaults if k.split(".")[-1] == key.split(".")[-1]][:3]
    hint = f"did you mean {' or '.join(close)}?" if close else "see imgtx_jax/config/defaults.py"
    raise UserError(f"--config.{key} is no key of the config; {hint}")
  kind = type(defaults[key])
  if kind is str or text is None:
    return
  try:
    value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
  except (ValueError, SyntaxError):
    value = text
  allowed = {float: (int, float), tuple: (tuple, list)}.get(kind, (kind,))
  if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
    raise UserError(
      f"--config.{key}={text} is no {kind.__name__}; the default is {defaults[key]!r}: "
      "write a value of that type"
    )
