"""How every command starts: flags, one line for what the user can mend, exit codes.

Exit codes: 0 done, 2 bad input (one line, no traceback), 128 + n stopped by signal n after saving,
75 another process of the run was lost (the same command goes on). Unexpected failures keep their
traceback and exit with 1.
"""

import functools
import logging as python_logging
import os
import sys
import traceback
import warnings

from absl import app, flags, logging

from imgtx_jax.cli import flag_errors
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError, first_line


class Interrupted(Exception):
  """A signal asked to stop, and everything is saved; signal_number says which."""

  def __init__(self, message, signal_number):
    super().__init__(message)
    self.signal_number = signal_number


def run(main, *, required=(), accepts="", processes_may=""):
  """Parses the flags and runs main(); required: names of flags that must be given.

  accepts: what arguments beside the flags are ("image files"); main then takes a list of them, at
  least one. processes_may: whether several processes can run it together: "share" the work, or
  "train", which SIGTERM stops at one step in all of them; "" is one process alone.
  """
  if processes_may:
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process, of several.")
    flags.DEFINE_integer("num_processes", None, "How many processes run this command together.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

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
      if processes_may:
        _connect(agree=processes_may == "train")
      main(*([arguments] if accepts else []))
      processes.wait_for_all("all are done")
    except UserError as error:
      _leave(f"{processes.name()}error: {error}", 2)
    except Interrupted as stop:
      _leave(str(stop), 128 + stop.signal_number, together=processes.agreeing())
    except Exception as error:
      _leave_broken(error)
      raise

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


def check_least(values, **limits):
  """UserError for a flag below its least value; values: the parsed flags."""
  for name, least in limits.items():
    value = values[name].value
    if value < least:
      raise UserError(f"--{name}={value} is under {least}; ask for {least} or more")


def _connect(agree):
  values = flags.FLAGS
  processes.start(values.coordinator_address, values.num_processes, values.process_id, agree=agree)


def _leave(line, code, together=False):
  sys.stdout.flush()
  print(" ".join(line.split()), file=sys.stderr, flush=True)
  processes.leave(code, together=together)


def _leave_broken(error):
  """Of an exception that nobody expected; returns in a process alone."""
  if processes.is_loss(error):
    _leave(
      f"{processes.name()}error: another process of this run is gone "
      f"({first_line(error)}): see its log, then run the same command again; it goes on "
      "from the last checkpoint",
      processes.LOST,
    )
  if processes.name():
    traceback.print_exc()
    processes.leave(1)


def _parse(argv):
  """absl's flag parsing, with one line and exit code 2 for any fault in what was written."""
  try:
    if "config" in flags.FLAGS:
      flag_errors.check(argv)
    return flags.FLAGS(argv)
  except (UserError, flags.Error) as error:
    _leave(f"error: {error}", 2)


def _quiet():
  """Progress goes to stdout; of the libraries only warnings are worth a line.

  Orbax logs, with tracebacks from several threads, what it also raises: users get one line. Its
  reads and writes that go on after a first failed one raise where nobody can catch it.
  """
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  python_logging.getLogger("jax").setLevel(python_logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
  sys.unraisablehook = functools.partial(_drop_orphans, others=sys.unraisablehook)


def _drop_orphans(unraisable, others):
  if "Event loop is closed" not in str(unraisable.exc_value):
    others(unraisable)
