"""Which axis of which array is split over devices (fsdp): by rules and by size."""

import math
import re

from imgtx_jax.errors import UserError

_SCANNED = re.compile(r"(^|[/_])layers($|[/_])")  # a path component "layers" or "..._layers"


def split_axis(path, shape, fsdp, rules, least):
  """The axis of the array at a path of the state that is split over fsdp devices, or None to
  replicate it: the largest that fsdp divides, of arrays of at least so many numbers.

  rules: (compiled regex, axis or None) pairs, of which the first that the path matches decides.
  """
  if fsdp == 1:
    return None
  for pattern, axis in rules:
    if pattern.search(path):
      axis = None if axis is None or axis >= len(shape) else axis
      if axis is not None and shape[axis] % fsdp:
        raise UserError(
          f"sharding rule {pattern.pattern!r} splits axis {axis} of {path} {tuple(shape)}, "
          f"which fsdp {fsdp} does not divide: choose another axis or None"
        )
      return axis
  if math.prod(shape) < least:
    return None
  first = 1 if _SCANNED.search(path) else 0  # never the layer axis: a scan slices it every step
  axes = [a for a in range(first, len(shape)) if shape[a] % fsdp == 0]
  return max(axes, key=lambda a: shape[a], default=None)
