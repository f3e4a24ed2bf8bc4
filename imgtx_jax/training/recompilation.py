"""Says why a step is compiled again: what differs in its arguments from those that it knows."""

import jax


class ArgumentWatch:
  """Remembers the kinds of arguments that a compiled function was called with.

  jax.jit and jax.pmap compile once for each kind: shapes, types and placements of all arrays.
  """

  def __init__(self):
    self._known, self._last = [], None

  def changes(self, args):
    """Returns what is new in a tree of arrays, as a text; "" at the first call, and where they are
    of a known kind."""
    leaves, structure = jax.tree.flatten(args)
    kind = structure, [(x.shape, x.dtype, x.weak_type, x.sharding) for x in leaves]
    if kind == self._last:
      return ""
    first, before, self._last = not self._known, self._last, kind
    if kind in self._known:
      return ""
    self._known.append(kind)
    return "" if first else _difference(before, kind, args)


def _difference(before, now, args):
  """Returns the text of the first difference, and how many more arrays differ."""
  if before[0] != now[0]:
    return f"the arguments are another tree of {len(now[1])} arrays, not {len(before[1])}"
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(args)
  ]
  found = [
    (name, *next((a, b) for a, b in zip(old, new, strict=True) if a != b))
    for name, old, new in zip(names, before[1], now[1], strict=True)
    if old != new
  ]
  name, old, new = found[0]
  more = f", and {len(found) - 1} more arrays differ" if len(found) > 1 else ""
  return f"{name} was {_text(old)} and is {_text(new)}{more}"


def _text(value):
  if isinstance(value, bool):
    return "weakly typed" if value else "of a fixed type"
  return str(value)
