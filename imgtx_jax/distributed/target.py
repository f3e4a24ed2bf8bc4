"""What programs are traced for: the platform, which a plan's chips have and this process may not,
and the devices that activations are split over."""

import contextlib

import jax

_planned = None
_keep = None


def platform():
  """The name of the platform: cpu, gpu or tpu."""
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


def rows(x):
  """Activations [B, …], to stay split over devices as the batch is, where there is a mesh."""
  return _keep(x) if _keep else x


@contextlib.contextmanager
def keep_rows(keep):
  """Within it, rows(x) is keep(x)."""
  global _keep
  before, _keep = _keep, keep
  try:
    yield
  finally:
    _keep = before
