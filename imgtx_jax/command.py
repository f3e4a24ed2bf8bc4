"""How every command starts: flags, one line for what the user can mend, exit codes.

Exit codes: 0 done, 2 bad input (one line, no traceback), 128 + n stopped by signal n after saving.
Unexpected failures keep their traceback and exit with 1.
"""

import logging as python_logging
import os
import sys
import warnings

from absl import app, flags, logging

from imgtx_jax import config_flag
from imgtx_jax.errors import UserError


class Interrupted(Exception):
  """A signal asked to stop, and everything is saved; signal_number says which."""

  def __init__(self, message, signal_number):
    super().__init__(message)
    self.signal_number = signal_number


def run(main, *, required=(), accepts=""):
  """Parses the flags and runs main(); required: names of flags that must be given.

  accepts: what arguments beside the flags are ("image files"); main then takes a list of them, at
  least one.
  """

  def guarded(argv):
    arguments = argv[1:]
    try:
      if arguments and not accepts:
        raise UserError(f"unexpected argument {arguments[0]!r}; flags are written --name=value")
      if accepts and not arguments:
        raise UserError(f"no {accepts} given; run with --help to see how")
      for name in required:
        if flags.FLAGS[name].value is None:
          raise UserError(f"--{name} is missing; run with --help to see all flags")
      main(*([arguments] if accepts else []))
    except UserError as error:
      _leave(f"error: {error}", 2)
    except Interrupted as stop:
      _leave(str(stop), 128 + stop.signal_number)

  _quiet()
  app.run(guarded, flags_parser=_parse)


def define_checkpoint_flag():
  """--checkpoint, of the commands that use what a stage has trained."""
  flags.DEFINE_enum(
    "checkpoint",
    "last",
    ("last", "best"),
    "Which one of the stage: its last, or the best by the figure that config.best_metric named.",
  )


def _leave(line, code):
  sys.stdout.flush()
  print(" ".join(line.split()), file=sys.stderr, flush=True)
  sys.exit(code)


def _parse(argv):
  """absl's flag parsing, with one line and exit code 2 for any fault in what was written."""
  try:
    if "config" in flags.FLAGS:
      config_flag.check(argv)
    return flags.FLAGS(argv)
  except (UserError, flags.Error) as error:
    _leave(f"error: {error}", 2)


def _quiet():
  """Progress goes to stdout; of the libraries only warnings are worth a line."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  python_logging.getLogger("jax").setLevel(python_logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  warnings.filterwarnings("ignore", category=DeprecationWarning)
