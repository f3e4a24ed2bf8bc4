"""The platform that programs are traced for: this process's, or that of a plan's chips, which are
elsewhere."""

import contextlib

import jax

_planned = None


def platform():
  """ "cpu", "gpu" or "tpu"."""
  return _planned or jax.default_backend()


@contextlib.contextmanager
def plan_for(name):
  """Within it, platform() is that one."""
  global _planned
  before, _planned = _planned, name
  try:
    yield
  finally:
    _planned = before
