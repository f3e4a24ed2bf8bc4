"""A cache of a data set's codes: written in shards, checked when opened, read memory-mapped.

FOLDER/index.json        the fingerprint (tokenizer, data, crops), the layout and, once all shards
                         are finished, the CRC-32 of each file
FOLDER/codes-00012.npy   shard 12: uint16 [examples, C, N], or uint32 if V > 65536
FOLDER/labels-00012.npy  int32 [examples]; -1 if the image was unreadable, and then codes are 0
FOLDER/shard-00012.json  the CRC-32s of a finished shard that the index does not list yet

A shard is finished when its CRC-32s are written. An interrupted build goes on with the missing
shards; a damaged shard is built again. Dimensions: C crops of an image, N codes of a crop.
"""

import contextlib
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from imgtx_jax.data.sources import Source
from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import open_atomically, write_atomically

SHARD_BYTES = 2**20  # least size of a shard if there are several; a kill loses at most one shard
MAX_SHARDS = 256  # all are open while the cache is read
_PARTS = ("codes", "labels")


class Layout(NamedTuple):
  """The shape of a cache: examples × crops × codes of dtype, shard_examples per shard."""

  examples: int
  crops: int
  codes: int
  dtype: str
  shard_examples: int

  @property
  def bytes(self):
    """Returns the size in bytes of all codes and labels."""
    return self.examples * self.example_bytes

  @property
  def example_bytes(self):
    """Returns the size in bytes of one example's codes and label."""
    return self.crops * self.codes * np.dtype(self.dtype).itemsize + 4

  @property
  def shards(self):
    """Returns the number of shards."""
    return -(-self.examples // self.shard_examples)

  def span(self, shard):
    """Returns the range of a shard's examples."""
    first = shard * self.shard_examples
    return range(first, min(first + self.shard_examples, self.examples))


def make_layout(examples, crops, codes, codebook_size):
  """Returns the Layout for numbers of images, crops per image, codes per crop, and V."""
  dtype = "uint16" if codebook_size <= 2**16 else "uint32"
  whole = Layout(examples, crops, codes, dtype, examples)
  shards = min(MAX_SHARDS, max(1, whole.bytes // SHARD_BYTES), examples)
  return whole._replace(shard_examples=-(-examples // shards))


class CodeCache:
  """The cache in a folder.

  fingerprint: {name: plain value}, identifies the tokenizer, data and crops. layout: Layout of a
  new cache. Raises UserError if the folder holds a cache with another fingerprint. Only claim,
  writing and finish write files.
  """

  def __init__(self, folder, fingerprint, layout):
    self.folder = Path(folder)
    self.fingerprint = json.loads(json.dumps(fingerprint))
    self.layout = layout
    self.index = self._read_index()
    if self.index:
      self._check_fingerprint()
      self.layout = Layout(**self.index["layout"])

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
    """Writes the index of a new cache. One process calls it before the first shard is written."""
    if not self.index:
      self._write_index([])

  @contextlib.contextmanager
  def writing(self, shard):
    """Opens a shard for writing; yields append(labels int [b], codes int [b, C, N]).

    The shard exists once the block has ended, and not at all if it raises.
    """
    shape = (len(self.layout.span(shard)), self.layout.crops, self.layout.codes)
    labels, codes_crc = [], 0
    with open_atomically(self._path("codes", shard)) as file:

      def append(batch_labels, codes):
        nonlocal codes_crc
        data = np.ascontiguousarray(codes, self.layout.dtype).tobytes()
        labels.append(np.asarray(batch_labels, np.int32))
        codes_crc = zlib.crc32(data, codes_crc)
        file.write(data)

      header = _header(self.layout.dtype, shape)
      codes_crc = zlib.crc32(header)
      file.write(header)
      yield append
    labels = np.concatenate(labels)
    labels = _header(labels.dtype, labels.shape) + labels.tobytes()
    write_atomically(self._path("labels", shard), labels)
    crcs = {"codes": codes_crc, "labels": zlib.crc32(labels)}
    record = {"fingerprint": self._digest(), "crc32": crcs}
    write_atomically(self._path("shard", shard), json.dumps(record).encode())

  def finish(self):
    """Lists all shards in the index. One process calls it after all have written their shards.

    Raises UserError if a shard is absent.
    """
    shards = [self._crcs(shard) for shard in range(self.layout.shards)]
    absent = [shard for shard, crcs in enumerate(shards) if crcs is None]
    if absent:
      raise UserError(
        f"{self._path('shard', absent[0])} is not there, though all {self.layout.shards} shards "
        "were written: name a folder that all processes share"
      )
    self._write_index(shards)
    for shard in range(self.layout.shards):
      self._path("shard", shard).unlink(missing_ok=True)

  def open(self, images):
    """Returns a CodeSource of the complete cache; images: the source it was built from."""
    self.index = self._read_index()
    try:
      return CodeSource(self, images)
    except OSError as error:
      raise UserError(
        f"the code cache {self.folder} cannot be read ({error}): run the same command again, on a "
        "folder that all processes share"
      ) from error

  def load(self, part, shard):
    """Returns the "codes" or "labels" of a shard, memory-mapped."""
    return np.load(self._path(part, shard), mmap_mode="r").view(np.ndarray)

  def _path(self, part, shard):
    return self.folder / f"{part}-{shard:05}.{'json' if part == 'shard' else 'npy'}"

  def _intact(self, shard):
    crcs = self._crcs(shard)
    if crcs is None:
      return False
    for part in _PARTS:
      path = self._path(part, shard)
      if not path.exists() or _crc32(path) != crcs[part]:
        logging.warning("%s is damaged or gone: shard %d is made again", path, shard)
        return False
    return True

  def _crcs(self, shard):
    """Returns {"codes", "labels"} of a finished shard, or None; its own file precedes the index."""
    try:
      record = json.loads(self._path("shard", shard).read_bytes())
    except (OSError, ValueError):
      return self.index["shards"][shard] if self.complete else None
    return record["crc32"] if record["fingerprint"] == self._digest() else None

  def _digest(self):
    return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

  def _read_index(self):
    """Returns the index, or {} if there is none; raises UserError if it is damaged."""
    path = self.folder / "index.json"
    if not path.exists():
      return {}
    try:
      index = json.loads(path.read_bytes())
      Layout(**index["layout"]), index["fingerprint"].items(), len(index["shards"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f"{path} is no index of a code cache, or damaged ({error}): delete {self.folder} to have "
        "it made again, or name another folder"
      ) from error
    return index

  def _write_index(self, shards):
    self.index = {
      "fingerprint": self.fingerprint,
      "layout": self.layout._asdict(),
      "files": [[self._path(part, s).name for part in _PARTS] for s in range(len(shards))],
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
        f"the code cache {self.folder} is of something else ({len(other)} differ: {differing}): "
        "name another folder, or delete that one to have it made again"
      )


class CodeSource(Source):
  """A source of the readable examples of a complete cache: {"codes": [C, N], "label", "name"}.

  Codes are memory-mapped, and shared by all processes of a machine.
  """

  def __init__(self, cache, images):
    super().__init__(images.class_names)
    shards = range(cache.layout.shards)
    self._images, self._per_shard = images, cache.layout.shard_examples
    self._codes = [cache.load("codes", shard) for shard in shards]
    self._labels = np.concatenate([cache.load("labels", shard) for shard in shards])
    self._rows = np.flatnonzero(self._labels >= 0)
    unreadable = np.flatnonzero(self._labels < 0)
    try:
      self.corrupt.take_over({int(i): images.name(i) for i in unreadable}, len(self._labels))
    except UserError as error:
      raise UserError(f"{error}; then delete {cache.folder}") from error

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, index):
    row = self._rows[index]
    shard, within = divmod(row, self._per_shard)
    label = int(self._labels[row])
    return {"codes": self._codes[shard][within], "label": label, "name": self.name(index)}

  def draw(self, index, rng):
    """Returns {"codes": int32 [N] of a random crop, "label": int32}; rng is a NumPy generator."""
    row = self._rows[index]
    shard, within = divmod(row, self._per_shard)
    crops = self._codes[shard][within]
    codes = crops[rng.integers(len(crops))].astype(np.int32)
    return {"codes": codes, "label": self._labels[row]}

  def name(self, index):
    return self._images.name(int(self._rows[index]))


def _header(dtype, shape):
  """Returns the header bytes of an .npy file of an array of this dtype and shape."""
  file = io.BytesIO()
  descr = np.dtype(dtype).newbyteorder("<").str
  header = {"descr": descr, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue()


def _crc32(path):
  crc = 0
  with open(path, "rb") as file:
    while data := file.read(2**22):
      crc = zlib.crc32(data, crc)
  return crc
