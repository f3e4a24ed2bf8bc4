"""The flags of one command, in groups with titles: defined, and listed for --help."""

import functools

from absl import flags
from ml_collections import config_flags

from imgtx_jax import rng
from imgtx_jax.cli import paths

WIDTH = 100  # columns of the help screen
_LARGEST = 2**31 - 1  # more would overflow int32, or ask for all memory there is


class FlagGroups:
  """Defines flags in absl FlagValues and remembers their groups.

  group() begins a group; string(), integer() and so on define a flag in the group begun last.

  Attributes:
    least: {name: least value}, of the flags that have one.
  """

  def __init__(self, values, argv):
    self.values, self.argv = values, argv
    self.least = {}
    self._groups = []  # (title, names, whether names alone are listed)
    self._texts = {}

  @property
  def names(self):
    """Returns the names of all flags."""
    return [name for _, names, _ in self._groups for name in names]

  def group(self, title, brief=False):
    """Begins a group; brief: --help lists its flags by name alone."""
    self._groups.append((title, [], brief))

  def string(self, name, default, text):
    """Defines a flag that takes a text."""
    self._define(flags.DEFINE_string, name, default, text)

  def strings(self, name, default, text):
    """Defines a flag that may be given several times, each with a text."""
    self._define(flags.DEFINE_multi_string, name, default, text)

  def path(self, name, default, text, words=""):
    """Defines a flag that names a file or a folder, absolute once it is parsed; words: a pattern of
    values that are no paths."""

    def define(name, default, text, flag_values):
      flags.DEFINE(paths.parser(words), name, default, text, flag_values=flag_values)

    self._define(define, name, default, text)

  def paths(self, name, default, text, named=False):
    """Defines a flag that may be given several times, each with a path; named: each NAME=PATH."""

    def define(name, default, text, flag_values):
      serializer = flags.ArgumentSerializer()
      parser = paths.parser(named=named)
      flags.DEFINE_multi(parser, serializer, name, default, text, flag_values=flag_values)

    self._define(define, name, default, text)

  def seed(self):
    """Defines --seed, for commands that draw images."""

    def define(name, default, text, flag_values):
      bounds = dict(lower_bound=0, upper_bound=rng.MAX_SEED)
      flags.DEFINE_integer(name, default, text, flag_values=flag_values, **bounds)

    self._define(define, "seed", 0, "Image i depends on the seed, i and its label.")

  def list(self, name, default, text):
    """Defines a flag that takes texts with commas between them."""
    self._define(flags.DEFINE_list, name, default, text)

  def integer(self, name, default, text, least=None):
    """Defines a flag that takes a whole number, of `least` or more, that int32 holds."""
    define = functools.partial(flags.DEFINE_integer, upper_bound=_LARGEST)
    self._define(define, name, default, text, least)

  def float(self, name, default, text, least=None):
    """Defines a flag that takes a number, of `least` or more."""
    self._define(flags.DEFINE_float, name, default, text, least)

  def bool(self, name, text):
    """Defines a switch that is off unless it is given."""
    self._define(flags.DEFINE_bool, name, False, text)

  def enum(self, name, default, choices, text):
    """Defines a flag that takes one of `choices`, which are listed after the text."""

    def define(name, default, text, flag_values):
      flags.DEFINE_enum(name, default, choices, text, flag_values=flag_values)

    shown = ", ".join(choice for choice in choices if choice)
    self._define(define, name, default, f"{text}: {shown}.")

  def config(self, text="The experiment: FILE.py[:argument]; --config.KEY=VALUE sets a key of it."):
    """Defines --config, a config file with overrides."""

    def define(name, default, text, flag_values):
      config_flags.DEFINE_config_file(
        name, default, text, flag_values, lock_config=True, sys_argv=self.argv
      )

    self._define(define, "config", None, text)

  def checkpoint(self):
    """Defines --checkpoint, for commands that use what a stage has trained."""
    text = "Which one of the stage (best: by config.best_metric)"
    self.enum("checkpoint", "last", ("last", "best"), text)

  def _define(self, define, name, default, text, least=None):
    define(name, default, text, flag_values=self.values)
    self._groups[-1][1].append(name)
    self._texts[name] = text
    if least is not None:
      self.least[name] = least

  def lines(self, titles=True):
    """Returns the lines of the help screen."""
    lines = []
    for title, names, brief in self._groups:
      lines += ["", f"{title}:"] if titles else []
      if brief:
        lines += _wrapped([f"--{name}" for name in names])
      else:
        lines += [self._line(name) for name in names]
    return lines

  def _line(self, name):
    """Returns the line of one flag: its name, its default, what it does."""
    default, text = self.values[name].default, self._texts[name]
    shown = default is not None and default is not False and default not in ("", [])
    return f"  {f'--{name}={default}' if shown else f'--{name}':<24}  {text}"


def _wrapped(words):
  """Words between spaces, in indented lines of up to WIDTH columns."""
  lines = ["  "]
  for word in words:
    if len(lines[-1]) + len(word) + 1 > WIDTH:
      lines.append("  ")
    lines[-1] += f" {word}" if lines[-1].strip() else word
  return lines
