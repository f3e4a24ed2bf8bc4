"""A cache of a data set's codes: written in shards, checked when opened, read memory-mapped.

It is an io.sharded_store with two arrays: codes, uint16 [examples, C, N] (uint32 if V > 65536), and
labels, int32 [examples], -1 if the image was unreadable, and then codes are 0. Dimensions: C crops
of an image, N codes of a crop.
"""

import dataclasses

import numpy as np

from imgtx_jax.data.sources import Source
from imgtx_jax.errors import UserError
from imgtx_jax.io import sharded_store

SHARD_BYTES = 2**20  # least size of a shard if there are several; a kill loses at most one shard
MAX_SHARDS = 256  # all are open while the cache is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout(sharded_store.Layout):
  """The shape of a cache: examples × crops × codes of dtype, shard_examples per shard."""

  crops: int
  codes: int
  dtype: str

  @property
  def bytes(self):
    """Returns the size in bytes of all codes and labels."""
    return self.examples * self.example_bytes

  @property
  def example_bytes(self):
    """Returns the size in bytes of one example's codes and label."""
    return self.crops * self.codes * np.dtype(self.dtype).itemsize + 4


def make_layout(examples, crops, codes, codebook_size):
  """Returns the Layout for numbers of images, crops per image, codes per crop, and V."""
  dtype = "uint16" if codebook_size <= 2**16 else "uint32"
  whole = Layout(examples=examples, shard_examples=examples, crops=crops, codes=codes, dtype=dtype)
  shards = min(MAX_SHARDS, max(1, whole.bytes // SHARD_BYTES), examples)
  return dataclasses.replace(whole, shard_examples=-(-examples // shards))


class CodeCache(sharded_store.ShardedStore):
  """The cache in a folder; fingerprint identifies the tokenizer, data and crops."""

  kind = "code cache"

  def write_codes(self, shard, labels, codes):
    """Writes a shard of labels int [n] and codes int [n, C, N]."""
    codes = np.ascontiguousarray(codes, self.layout.dtype)
    self.write(shard, {"codes": codes, "labels": np.asarray(labels, np.int32)})

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
