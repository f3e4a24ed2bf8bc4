"""How every command is built and run: flags → one call; exit codes; --help.

A command is a Command: `define_flags` names its flags, `main` takes their values. A command with
several kinds (`convert llamagen`, `convert imagenet`) is a dict of Commands.

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
from collections.abc import Callable
from typing import NamedTuple

import jax
from absl import app, flags, logging

from imgtx_jax.cli import absent_devices, flag_errors, output, paths
from imgtx_jax.cli.flag_groups import FlagGroups
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError, first_line


class Interrupted(Exception):
  """A signal asked to stop, and everything is saved.

  Attributes:
    signal_number: the signal.
  """

  def __init__(self, message, signal_number):
    super().__init__(message)
    self.signal_number = signal_number


class Command(NamedTuple):
  """One command.

  main: called with the values of the flags (absl FlagValues) and, with `accepts`, with the list of
    the other arguments.
  define_flags: called with a FlagGroups.
  doc: its first two paragraphs, a summary and an indented example, begin --help.
  required: names of flags that must be given.
  accepts: what the arguments beside the flags are ("image files"), at least one; "": none.
  processes: whether several processes can run it together: "share" the work, or "train", which
    SIGTERM stops at one step in all of them; "": one process alone.
  """

  main: Callable
  define_flags: Callable
  doc: str
  required: tuple[str, ...] = ()
  accepts: str = ""
  processes: str = ""


class Parsed(NamedTuple):
  """A command line: the Command, the values of its flags, the other arguments."""

  command: Command
  flags: flags.FlagValues
  arguments: list[str]

  def run(self):
    """Calls the command."""
    return self.command.main(self.flags, *([self.arguments] if self.command.accepts else []))


def run(command, doc=""):
  """Parses the command line and runs a Command or the chosen one of {kind: Command}.

  doc: the docstring of the module, for the kinds' --help.
  """
  parsed = None

  def parse_flags(argv):
    nonlocal parsed
    try:
      if text := help_asked(command, argv, doc):
        print(text)
        sys.exit(0)
      parsed = parse(command, argv, with_libraries=True)
    except (UserError, flags.Error) as error:
      _leave(f"error: {error}", 2)
    return argv[:1]

  output.protect()
  _quiet()
  jax.config.config_with_absl()
  app.run(lambda _: _guarded(parsed), flags_parser=parse_flags)


def parse(command, argv, with_libraries=False):
  """Returns the Parsed command line argv, whose first word is the program's name.

  with_libraries: also accept the flags of absl and JAX, and set them for the whole process. Raises
  UserError or absl's flags.Error for what is wrong with it.
  """
  command, argv = choose(command, argv)
  values, groups = make_flags(command, argv)
  if with_libraries:
    values.append_flag_values(flags.FLAGS)  # the same Flag objects: set here, they are set there
    flags.FLAGS.mark_as_parsed()
  if "config" in groups.names:
    argv = paths.expand_config_flag(values.read_flags_from_files(argv, force_gnu=False))
    flag_errors.check(argv)
  arguments = values(argv)[1:]
  if arguments and not command.accepts:
    raise UserError(f"unexpected argument {arguments[0]!r}; flags are written --name=value")
  if command.accepts and not arguments:
    raise UserError(f"no {command.accepts} given; run with --help to see how")
  for name in command.required:
    if not values[name].value:
      raise UserError(f"--{name} is missing; run with --help to see all flags")
  for name, least in groups.least.items():
    value = values[name].value
    if value is not None and value < least:
      raise UserError(f"--{name}={value} is under {least}; ask for {least} or more")
  if "config" in groups.names and values.config:
    paths.resolve(values.config)
  return Parsed(command, values, arguments)


def choose(command, argv):
  """Returns the Command that argv names and argv without that name."""
  if isinstance(command, Command):
    return command, argv
  kinds = ", ".join(command)
  if len(argv) < 2 or argv[1].startswith("-"):
    found = f"{argv[1]!r} stands in its place" if len(argv) > 1 else "there is none"
    raise UserError(f"the first argument must be one of: {kinds}; {found}")
  if argv[1] not in command:
    raise UserError(f"{argv[1]!r} is not one of: {kinds}")
  return command[argv[1]], [f"{argv[0]} {argv[1]}", *argv[2:]]


def make_flags(command, argv=("",)):
  """Returns absl FlagValues with the command's flags, not parsed yet, and their FlagGroups."""
  values = flags.FlagValues()
  groups = FlagGroups(values, list(argv))
  command.define_flags(groups)
  if command.processes:
    groups.group("Several processes (found by themselves on Cloud TPUs, SLURM and GKE)", brief=True)
    groups.string("coordinator_address", None, "HOST:PORT of the first process.")
    groups.integer("num_processes", None, "How many processes run this command together.")
    groups.integer("process_id", None, "The number of this one, from 0.")
  return values, groups


# -- --help ----------------------------------------------------------------------------------------


def help_asked(command, argv, doc=""):
  """Returns the text that --help or --helpfull in argv asks for, or ""."""
  words = [word.lstrip("-") for word in argv[1:] if word.startswith("-")]
  if not {"help", "helpshort", "helpfull", "h"} & set(words):
    return ""
  if not isinstance(command, Command) and len(argv) > 1 and argv[1] in command:
    command = command[argv[1]]
  text = help_text(command, doc)
  if "helpfull" in words:
    text += f"\n\n{flags.FLAGS.get_help()}"
  return text


def help_text(command, doc=""):
  """Returns the screen of --help: what the command does, an example, its flags in groups."""
  if not isinstance(command, Command):
    lines = _introduction(doc)
    for name, kind in command.items():
      summary = _introduction(kind.doc)[0].partition(": ")[2]
      lines += ["", f"{name}: {summary}", *make_flags(kind)[1].lines(titles=False)]
  else:
    lines = [*_introduction(command.doc), *make_flags(command)[1].lines()]
  return "\n".join([*lines, "", "--helpfull adds the flags of JAX and absl."])


def _introduction(doc):
  """Returns the first two paragraphs of a docstring, as lines."""
  return "\n\n".join(doc.strip().split("\n\n")[:2]).splitlines()


# -- Running ---------------------------------------------------------------------------------------


def _guarded(parsed):
  """Runs a parsed command; exceptions become exit codes, and one line where they are expected."""
  absent_devices.hide()
  try:
    if parsed.command.processes:
      values = parsed.flags
      processes.start(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        agree=parsed.command.processes == "train",
      )
    parsed.run()
    processes.wait_for_all("all are done")
  except UserError as error:
    _leave(f"{processes.name()}error: {error}", 2)
  except Interrupted as stop:
    _leave(str(stop), 128 + stop.signal_number, together=processes.agreeing())
  except Exception as error:
    if line := _machine_fault(error):
      _leave(f"{processes.name()}error: {line}", 2)
    _leave_broken(error)
    raise


def _machine_fault(error):
  """Returns a line on an exception that tells of this machine's limits, "" for any other."""
  text = str(error)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      f"out of memory ({first_line(error)}): ask for less at a time (batch_size, num), or use more "
      "devices; python -m imgtx_jax.plan says what a training needs"
    )
  if "Unable to initialize backend" in text:
    return f"{first_line(error)}; set JAX_PLATFORMS to what this machine has (cpu), or unset it"
  return ""


def _leave(line, code, together=False):
  sys.stdout.flush()
  print(" ".join(line.split()), file=sys.stderr, flush=True)
  processes.leave(code, together=together)


def _leave_broken(error):
  """Leaves after an unexpected exception; returns where this process runs alone."""
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


def _quiet():
  """Shows only warnings of libraries; progress goes to stdout.

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
