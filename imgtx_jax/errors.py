"""UserError, the exception for faults that the user can mend, and its message texts."""


class UserError(Exception):
  """Bad input: one line that names the value, the limit and the remedy.

  Commands print the line without a traceback and exit with code 2.
  """


def one_of(key, value, allowed):
  """Raises a UserError that names the key unless value is among allowed."""
  if value not in allowed:
    raise UserError(f"{key}={value!r} is not one of: {', '.join(map(str, allowed))}")


def first_line(error):
  """Returns the first line of an exception's text, at most 300 characters, or its class name."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
