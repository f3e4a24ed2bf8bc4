"""The one exception for what the user can mend."""


class UserError(Exception):
  """Bad input: one line that names the value, the limit and the remedy.

  Commands print the line without a traceback and exit with code 2.
  """
