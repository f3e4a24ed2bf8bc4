"""Arrays of many examples on disk, in shards with checksums.

FOLDER/index.json        the fingerprint, the layout and, once all shards are finished, the CRC-32
                         of each file
FOLDER/codes-00012.npy   the array "codes" of shard 12: a row for each of its examples
FOLDER/shard-00012.json  the CRC-32s of a finished shard that the index does not list yet

A shard is finished when its CRC-32s are written. An interrupted build goes on with the missing
shards, and damaged shards are built again. Processes that share the folder build shards of their
own.
"""

import dataclasses
import hashlib
import io
import json
import zlib
from pathlib import Path

import numpy as np
from absl import logging

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """The numbers of examples in all and per shard; the last shard may have fewer."""

  examples: int
  shard_examples: int

  @property
  def shards(self):
    """Returns the number of shards."""
    return -(-self.examples // self.shard_examples)

  def span(self, shard):
    """Returns the range of a shard's examples."""
    first = shard * self.shard_examples
    return range(first, min(first + self.shard_examples, self.examples))


class ShardedStore:
  """The store in a folder.

  fingerprint: {name: plain value}, identifies what the arrays are of. layout: Layout of a new
  store; an existing one keeps its own. Raises UserError if the folder holds a store with another
  fingerprint. Only claim, write and finish write files.
  """

  kind = "store"  # in messages

  def __init__(self, folder, fingerprint, layout):
    self.folder = Path(folder)
    self.fingerprint = json.loads(json.dumps(fingerprint))
    self.layout = layout
    self.index = self._read_index()
    if self.index:
      self._check_fingerprint()
      self.layout = type(layout)(**self.index["layout"])

  @property
  def complete(self):
    """Returns whether the index lists all shards; does not check that they are intact."""
    return bool(self.index) and len(self.index["shards"]) == self.layout.shards

  def missing(self, process_index=0, process_count=1):
    """Returns the shards of process p of P (p, p + P, …) that are absent or damaged.

    It reads all their bytes.
    """
    mine = range(process_index, self.layout.shards, process_count)
    return [shard for shard in mine if not self._intact(shard)]

  def claim(self):
    """Writes the index of a new store. One process calls it before the first shard is written."""
    self.index = self.index or self._read_index()
    if not self.index:
      self._write_index([])

  def write(self, shard, arrays):
    """Writes a shard, {name: array [n, …]}; it counts once all of its files are written."""
    crcs = {}
    for name, array in arrays.items():
      file = io.BytesIO()
      np.save(file, array)
      data = file.getbuffer()
      crcs[name] = zlib.crc32(data)
      write_atomically(self._path(name, shard), data)
    record = {"fingerprint": self._digest(), "crc32": crcs}
    write_atomically(self._path("shard", shard), json.dumps(record).encode())

  def finish(self):
    """Lists all shards in the index. One process calls it after all have written their shards.

    Raises UserError if a shard is absent.
    """
    if self.complete and not any(self.folder.glob("shard-*.json")):
      return
    shards = [self.checksums(shard) for shard in range(self.layout.shards)]
    absent = [shard for shard, crcs in enumerate(shards) if crcs is None]
    if absent:
      raise UserError(
        f"{self._path('shard', absent[0])} is not there, though all {self.layout.shards} shards "
        "were written: name a folder that all processes share"
      )
    self._write_index(shards)
    for shard in range(self.layout.shards):
      self._path("shard", shard).unlink(missing_ok=True)

  def load(self, name, shard):
    """Returns one array of a shard, memory-mapped."""
    return np.load(self._path(name, shard), mmap_mode="r").view(np.ndarray)

  def checksums(self, shard):
    """Returns {name: CRC-32} of a finished shard, or None; its own file precedes the index."""
    try:
      record = json.loads(self._path("shard", shard).read_bytes())
      intact = record["fingerprint"] == self._digest() and isinstance(record["crc32"], dict)
    except (OSError, ValueError, KeyError, TypeError):
      self.index = self.index if self.complete else self._read_index()
      return self.index["shards"][shard] if self.complete else None
    return record["crc32"] if intact else None

  def _path(self, name, shard):
    return self.folder / f"{name}-{shard:05}.{'json' if name == 'shard' else 'npy'}"

  def _intact(self, shard):
    crcs = self.checksums(shard)
    for name, crc in (crcs or {}).items():
      path = self._path(name, shard)
      if not path.exists() or _crc32(path) != crc:
        logging.warning("%s is damaged or gone: shard %d is made again", path, shard)
        return False
    return crcs is not None

  def _digest(self):
    return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

  def _read_index(self):
    """Returns the index, or {} if there is none; raises UserError if it is damaged."""
    path = self.folder / "index.json"
    if not path.exists():
      return {}
    try:
      index = json.loads(path.read_bytes())
      layout = type(self.layout)(**index["layout"])
      own = zip(dataclasses.astuple(layout), dataclasses.astuple(self.layout), strict=True)
      if not all(type(value) is type(like) for value, like in own) or layout.shard_examples < 1:
        raise ValueError(f"its layout is {index['layout']}")
      index["fingerprint"].items(), [crcs.items() for crcs in index["shards"]]
      if len(index["shards"]) not in (0, layout.shards):
        raise ValueError("shards are missing in its list")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise UserError(
        f"{path} is no index of a {self.kind}, or damaged ({error}): delete {self.folder} to have "
        "it made again, or name another folder"
      ) from error
    return index

  def _write_index(self, shards):
    self.index = {
      "fingerprint": self.fingerprint,
      "layout": dataclasses.asdict(self.layout),
      "files": [[self._path(name, s).name for name in crcs] for s, crcs in enumerate(shards)],
      "shards": shards,
    }
    write_atomically(self.folder / "index.json", json.dumps(self.index, indent=1).encode())

  def _check_fingerprint(self):
    theirs = self.index["fingerprint"]
    keys = sorted(self.fingerprint.keys() | theirs.keys())
    other = [k for k in keys if theirs.get(k, "absent") != self.fingerprint.get(k, "absent")]
    if other:
      differing = "; ".join(
        f"{k} is {theirs.get(k, 'absent')} there and {self.fingerprint.get(k, 'absent')} here"
        for k in other[:3]
      )
      raise UserError(
        f"the {self.kind} {self.folder} is of something else ({len(other)} differ: {differing}): "
        "name another folder, or delete that one to have it made again"
      )


def _crc32(path):
  crc = 0
  with open(path, "rb") as file:
    while data := file.read(2**22):
      crc = zlib.crc32(data, crc)
  return crc
