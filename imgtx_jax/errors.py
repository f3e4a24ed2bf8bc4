"""The one exception for what the user can mend."""


class UserError(Exception):
  """Bad input: one line that names the value, the limit and the remedy.

  Commands print the line without a traceback and exit with code 2.
  """


def one_of(key, value, allowed):
  """UserError naming the key unless value is among allowed."""
  if value not in allowed:
    raise UserError(f"{key}={value!r} is not one of: {', '.join(map(str, allowed))}")


def first_line(error):
  """Of an exception's text, cut at 300 characters; its class's name where it says nothing."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
