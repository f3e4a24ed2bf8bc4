"""Batches for training and evaluation, on Grain; uint8 [b, S, S, 3] with int32 labels [b].

A source of codes (data/codes.py) gives codes int32 [b, N] in the place of the images. Companions
are further sources, each with a stream of its own: their images lie beside the first by name.

The order of training is one infinite stream of all examples, reshuffled every epoch; batch t is
its rows t * batch_size onwards, and process p of P has the p-th block of each batch. So the
examples and their crops do not depend on the number of processes, and no epoch loses or repeats an
example (a corrupt one is skipped, which moves its process's later rows up).
"""

import zlib
from typing import NamedTuple

import grain
import numpy as np

from imgtx_jax.data.code_cache import CodeSource
from imgtx_jax.data.sources import ArraySource, Source
from imgtx_jax.data.transforms import CorruptImageError, center_crop, decode, random_resized_crop
from imgtx_jax.errors import UserError

_CHUNK = 16  # examples that a thread reads one after the other


class Companion(NamedTuple):
  """A second source of images: its training and held-out part, and its crops in training."""

  training: Source
  held_out: Source
  crop: str
  min_scale: float
  max_scale: float = 1.0


def train_iterator(
  source,
  *,
  batch_size,
  image_size,
  crop,
  min_scale,
  max_scale=1.0,
  seed,
  threads,
  process_index=0,
  process_count=1,
  companions=None,
):
  """An infinite Grain iterator of {"image": uint8 [b, S, S, 3], "label": int32 [b]}; of a source of
  codes, {"codes": int32 [b, N], "label"}, the codes of one of the image's crops at random.

  batch_size is global, b = batch_size // process_count; crop is "random" (with min_scale and
  max_scale, see random_resized_crop) or "center"; seed fixes order and crops; threads read and
  decode (none for images in memory, or for 0: the caller's does).
  get_state() and set_state() resume exactly: batches not yet handed out do not count.
  companions, {name: Companion}: adds {name: uint8 [b, S, S, 3]}, in an order of their own, so that
  the pairs change from epoch to epoch; one position is that of all streams.
  """
  rows = _local_rows(batch_size, process_count)
  companions = companions or {}
  stream = _stream(source, crop, (min_scale, max_scale), image_size, seed)
  if companions:
    others = {
      name: _stream(
        c.training,
        c.crop,
        (c.min_scale, c.max_scale),
        image_size,
        seed + zlib.crc32(name.encode()),
      )
      for name, c in companions.items()
    }
    stream = _Beside(stream, others)
  stream = _ProcessRows(stream, batch_size, process_index, process_count)
  threads = max(_threads(s, threads) for s in (source, *(c.training for c in companions.values())))
  return iter(_read(stream, threads, rows).batch(rows, drop_remainder=True, batch_fn=stack))


def _stream(source, crop, scales, image_size, seed):
  """The infinite MapDataset of a source's examples, None where one is unreadable."""
  if crop not in ("random", "center"):
    raise UserError(f'crop is "{crop}": use "random" or "center"')

  def load(index, rng):
    if isinstance(source, CodeSource):
      return source.draw(index, rng)
    if crop == "center":
      return _load(source, index, lambda x: center_crop(x, image_size))
    return _load(source, index, lambda x: random_resized_crop(x, image_size, rng, *scales))

  order = grain.MapDataset.range(len(source)).seed(seed % 2**32).shuffle().repeat()
  return order.random_map(load)


def eval_batches(
  source,
  *,
  batch_size,
  image_size,
  process_index=0,
  process_count=1,
  limit=None,
  threads=4,
  companions=None,
):
  """One pass of {"image", "label", "mask": float32 [b]} over centre crops, in the source's order.

  limit takes that many examples, spread evenly over the source (whose classes are in order). The
  last batch is padded; padding and corrupt images are zeros with mask 0. Every process yields the
  same number of batches. companions, {name: Companion}: adds their held-out images, from the first
  again where there are fewer of them; the mask is of both.
  """
  companions = companions or {}
  rows = _local_rows(batch_size, process_count)
  count = len(source) if limit is None else min(limit, len(source))
  blank = np.zeros((image_size, image_size, 3), np.uint8)

  def crop(source, index, total=None):
    return _load(source, index, lambda x: center_crop(x, image_size), total=total)

  def load(row):
    example = None
    if row < count:
      index = row * len(source) // count
      example = crop(source, index, total=count)
    beside = {n: crop(c.held_out, row % len(c.held_out)) for n, c in companions.items()}
    intact = example is not None and None not in beside.values()
    images = {name: blank if found is None else found["image"] for name, found in beside.items()}
    example = example or {"image": blank, "label": np.int32(0)}
    return {**example, **images, "mask": np.float32(intact)}

  padded = -(-count // batch_size) * batch_size
  stream = grain.MapDataset.range(padded).map(load)
  stream = _ProcessRows(stream, batch_size, process_index, process_count)
  threads = max(_threads(s, threads) for s in (source, *(c.held_out for c in companions.values())))
  return iter(_read(stream, threads, rows).batch(rows, batch_fn=stack))


def in_order(source, indices, *, crop, threads, ahead):
  """One pass over the examples `indices`, in that order: {"image": crop(image), "label": int32}, or
  {"label": -1} for an unreadable one; up to `ahead` of them are read in advance."""

  def load(row):
    example = _load(source, int(indices[row]), crop)
    return {"label": np.int32(-1)} if example is None else example

  threads = _threads(source, threads)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(threads, ahead) if threads else 0
  )
  return iter(grain.MapDataset.range(len(indices)).map(load).to_iter_dataset(options))


def corrupt_images(source):
  """What was unreadable so far, prefetched examples included: {"count", "seen", "names"}."""
  found = source.corrupt
  return {"count": found.count, "seen": found.seen, "names": list(found.names.values())}


class _Beside(grain.MapDataset):
  """Infinite streams of examples side by side: the first one's examples, with the images of the
  others under their names. None where one of them is."""

  def __init__(self, stream, others):
    super().__init__([stream, *others.values()])
    self._stream, self._others = stream, others

  def __len__(self):
    return len(self._stream)

  def __getitem__(self, index):
    example = self._stream[index]
    beside = {name: other[index] for name, other in self._others.items()}
    if example is None or None in beside.values():
      return None
    return example | {name: found["image"] for name, found in beside.items()}


class _ProcessRows(grain.MapDataset):
  """One process's rows of each global batch, at random access.

  (Grain's own slicing by process would deal the rows out one by one; blocks put each example into
  the row of the global batch that it has on one process, so its random draws stay the same too.)
  """

  def __init__(self, stream, batch_size, process_index, process_count):
    super().__init__(stream)
    self._stream, self._batch_size = stream, batch_size
    self._rows = batch_size // process_count
    self._offset = process_index * self._rows

  def __len__(self):
    return len(self._stream) // self._batch_size * self._rows

  def __getitem__(self, index):
    batch, row = divmod(index, self._rows)
    return self._stream[batch * self._batch_size + self._offset + row]


class _Chunks(grain.MapDataset):
  """A stream in lists of `size` examples: handing them from thread to thread one by one would take
  a tenth of all the time."""

  def __init__(self, stream, size):
    super().__init__(stream)
    self._stream, self._size = stream, size

  def __len__(self):
    return -(-len(self._stream) // self._size)

  def __getitem__(self, index):
    start = index * self._size
    return [self._stream[i] for i in range(start, min(start + self._size, len(self._stream)))]


class _Examples(grain.IterDataset):
  """The examples of _Chunks, without those that are None."""

  def __init__(self, chunks, size):
    super().__init__(chunks)
    self._size = size

  def __iter__(self):
    return _ExampleIterator(iter(self._parent), self._size)


class _ExampleIterator(grain.DatasetIterator):
  """Its state is that of a stream without chunks: the position of the next example."""

  def __init__(self, chunks, size):
    super().__init__(chunks)
    self._size, self._next, self._chunk = size, 0, None

  def __next__(self):
    while True:
      place = self._next % self._size
      if self._chunk is None or not place:
        self._chunk = next(self._parent)
      if place == len(self._chunk):
        raise StopIteration
      self._next += 1
      if self._chunk[place] is not None:
        return self._chunk[place]

  def get_state(self):
    return {"next_index": self._next}

  def set_state(self, state):
    self._next, self._chunk = state["next_index"], None
    self._parent.set_state({"next_index": self._next // self._size})


def _local_rows(batch_size, process_count):
  if batch_size % process_count:
    raise UserError(
      f"batch_size {batch_size} does not divide among {process_count} processes:"
      f" use a multiple of {process_count}"
    )
  return batch_size // process_count


def _threads(source, threads):
  # Measured on emoji: handing over what is only copied halves the speed and doubles the CPU time.
  return 0 if isinstance(source, ArraySource | CodeSource) else threads


def _read(stream, threads, rows):
  """Runs a stream in threads, up to two batches ahead (bounded: large images are held decoded)."""
  if not threads:
    return stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  ahead = max(threads, min(2 * rows, 512))
  size = max(1, min(_CHUNK, ahead // threads))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=-(-ahead // size))
  return _Examples(_Chunks(stream, size).to_iter_dataset(options), size)


def stack(examples):
  """Dicts of arrays as one dict of their stacks.

  They begin at a multiple of 64 bytes: such arrays JAX takes over on a CPU without a copy.
  """
  batch = {}
  for name, first in examples[0].items():
    first = np.asarray(first)
    memory = np.empty(len(examples) * first.nbytes + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][: len(examples) * first.nbytes]
    batch[name] = memory.view(first.dtype).reshape(len(examples), *first.shape)
    np.stack([example[name] for example in examples], out=batch[name])
  return batch


def _load(source, index, crop, total=None):
  """One example {"image": crop(image), "label": int32}, or None if it is unreadable."""
  try:
    example = source[index]
    image = example["image"]
    if isinstance(image, bytes):
      image = decode(image)
  except (CorruptImageError, OSError) as error:
    source.corrupt.add(index, source.name(index), error, total or len(source))
    return None
  source.corrupt.add_intact()
  return {"image": crop(image), "label": np.int32(example["label"])}
