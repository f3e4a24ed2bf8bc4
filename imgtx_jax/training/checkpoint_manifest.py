"""The record in a checkpoint, and the conversion of a state to named arrays and back.

The record is a JSON text with a checksum of its own. It has each array's shape, dtype and checksum,
the paths of empty dicts, the caller's meta, and every process's position in its data.
"""

import json
import zlib

import jax
from absl import logging

from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError
from imgtx_jax.training import checksums


def make(arrays, empty, iterator, meta):
  """Returns the record of {path: array} as {"text", "crc32"}."""
  sums = checksums.checksums(arrays)
  specs = {
    name: {"shape": list(x.shape), "dtype": str(x.dtype), "checksum": sums[name]}
    for name, x in arrays.items()
  }
  position = json.dumps(None if iterator is None else iterator.get_state(), default=_plain)
  positions = [json.loads(text) for text in processes.gather(position.encode())]
  record = {"arrays": specs, "empty": empty, "meta": meta or {}, "positions": positions}
  text = json.dumps(record, default=_plain)
  return {"text": text, "crc32": zlib.crc32(text.encode())}


def parse(stored):
  """Returns the record that `make` stored, or None if its checksum is wrong."""
  intact = zlib.crc32(stored["text"].encode()) == stored["crc32"]
  return json.loads(stored["text"]) if intact else None


def check_structure(path, record, like, empty):
  """Raises UserError if the arrays and empty dicts of a checkpoint differ from `like`, `empty`."""
  saved = {name: (tuple(a["shape"]), a["dtype"]) for name, a in record["arrays"].items()}
  saved |= dict.fromkeys(record["empty"], "an empty dict")
  ours = {name: (tuple(x.shape), str(x.dtype)) for name, x in like.items()}
  ours |= dict.fromkeys(empty, "an empty dict")
  names = sorted(name for name in saved.keys() | ours.keys() if saved.get(name) != ours.get(name))
  if names:
    raise UserError(
      f"checkpoint {path} is of another model: {names[0]} is {saved.get(names[0], 'absent')} there "
      f"but {ours.get(names[0], 'absent')} here ({len(names)} differ): use the config it was "
      "trained with or another --workdir"
    )


def set_position(iterator, positions):
  """Sets this process's data iterator to the saved position, given those of all processes.

  If another number of processes saved them, what all of them had read is divided anew: they read
  rows of one order, each a block of every batch (data/pipeline.py). Where unreadable images were
  skipped, a few examples are then read twice or not at all.
  """
  count = jax.process_count()
  if all(p is not None for p in positions) and len(positions) == count:
    iterator.set_state(positions[jax.process_index()])
  elif positions and all(isinstance(p, dict) and p.keys() == {"next_index"} for p in positions):
    iterator.set_state({"next_index": sum(p["next_index"] for p in positions) // count})
  else:
    logging.warning(
      "the data's position was saved by %d processes, %d run now: its order starts anew",
      sum(p is not None for p in positions),
      count,
    )


def flatten(state):
  """Returns ({path: leaf}, paths of empty dicts) of a state without its frozen networks."""
  state = state.replace(frozen={})
  leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_empty)
  named = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
  empty = [name for name, x in named.items() if _is_empty(x) and name != "frozen"]
  return {name: x for name, x in named.items() if not _is_empty(x)}, empty


def _is_empty(x):
  return isinstance(x, dict) and not x


def nest(named):
  """Returns {"a": {"b": x}} for {"a/b": x}."""
  tree = {}
  for path, x in named.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = x
  return tree


def _plain(x):
  """Converts what JSON does not know: NumPy scalars and arrays."""
  return x.tolist() if hasattr(x, "tolist") else str(x)
