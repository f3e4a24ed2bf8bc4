"""Batches for training and evaluation, on Grain: uint8 images [b, S, S, 3], int32 labels [b].

A CodeSource gives codes int32 [b, N] instead of images. Companions are further sources with streams
of their own; their images are added to the batch by name.

Training reads one infinite stream of all examples, reshuffled every epoch. Batch t has its rows
from t * batch_size on, and process p of P has the p-th block of each batch. So examples and crops
do not depend on the number of processes, and no epoch loses or repeats an example. (An unreadable
one is skipped, which moves its process's later rows up.)
"""

import zlib
from typing import NamedTuple

import grain
import numpy as np

from imgtx_jax import rng
from imgtx_jax.data.code_cache import CodeSource
from imgtx_jax.data.sources import ArraySource, Source
from imgtx_jax.data.transforms import CorruptImageError, center_crop, decode, random_resized_crop
from imgtx_jax.errors import UserError

_BATCHES_AHEAD = 2  # of codes, read by one thread
_CHUNK = 16  # consecutive examples that a thread reads at a time


class Companion(NamedTuple):
  """A further source of images: its training and held-out parts, and its crops in training."""

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
  """Returns an infinite Grain iterator of training batches.

  Its get_state() and set_state() resume exactly: prefetched batches do not count.

  Args:
    source: a Source of images or a CodeSource.
    batch_size: global; a process gets b = batch_size // process_count.
    image_size: S.
    crop: "random" (see random_resized_crop) or "center".
    min_scale, max_scale: of random_resized_crop.
    seed: determines order and crops.
    threads: number of threads that read and decode. With 0, and for images in memory, the caller's
      thread does. Codes are read by one thread, two batches ahead.
    process_index, process_count: of this process.
    companions: {name: Companion}. Each has an order of its own, so that pairs change from epoch to
      epoch.

  Returns:
    An iterator of {"image": uint8 [b, S, S, 3], "label": int32 [b]} and {name: uint8 [b, S, S, 3]}
    of companions. For a CodeSource, of {"codes": int32 [b, N], "label"}: codes of a random crop.

  Raises:
    UserError: if batch_size is no multiple of process_count, or crop is another word.
  """
  rows = _local_rows(batch_size, process_count)
  companions, seed = companions or {}, rng.seed_32(seed)
  stream = _stream(source, crop, (min_scale, max_scale), image_size, seed)
  if companions:
    stream = _WithCompanions(stream, _companion_streams(companions, image_size, seed))
  stream = _ProcessRows(stream, batch_size, process_index, process_count)
  threads = max(_threads(s, threads) for s in (source, *(c.training for c in companions.values())))
  batches = _read(stream, threads, rows).batch(rows, drop_remainder=True, batch_fn=stack)
  if isinstance(source, CodeSource):  # a whole batch at a time: its pages may come from the disk
    batches = grain.experimental.ThreadPrefetchIterDataset(
      batches, prefetch_buffer_size=_BATCHES_AHEAD
    )
  return iter(batches)


def _companion_streams(companions, image_size, seed):
  """Returns {name: infinite MapDataset} of companions, each with a seed of its own."""
  return {
    name: _stream(
      c.training,
      c.crop,
      (c.min_scale, c.max_scale),
      image_size,
      seed + zlib.crc32(name.encode()),
    )
    for name, c in companions.items()
  }


def _stream(source, crop, scales, image_size, seed):
  """Returns the infinite MapDataset of a source's examples; unreadable ones are None."""
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
  """Returns an iterator of one pass over centre crops, in the source's order.

  The last batch is padded. Padding and unreadable images are zeros with mask 0. All processes get
  the same number of batches.

  Args:
    source: a Source of images.
    batch_size: global; a process gets b = batch_size // process_count.
    image_size: S.
    process_index, process_count: of this process.
    limit: number of examples, spread evenly over the source, whose classes are in order; None for
      all.
    threads: number of threads that read and decode.
    companions: {name: Companion}; their held-out images are added, repeated if there are fewer. An
      example whose companion is unreadable has mask 0.

  Returns:
    An iterator of {"image": uint8 [b, S, S, 3], "label": int32 [b], "mask": float32 [b]} and
    {name: uint8 [b, S, S, 3]} of companions.
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
    others = {n: crop(c.held_out, row % len(c.held_out)) for n, c in companions.items()}
    intact = example is not None and None not in others.values()
    images = {name: blank if other is None else other["image"] for name, other in others.items()}
    example = example or {"image": blank, "label": np.int32(0)}
    return {**example, **images, "mask": np.float32(intact)}

  padded = -(-count // batch_size) * batch_size
  stream = grain.MapDataset.range(padded).map(load)
  stream = _ProcessRows(stream, batch_size, process_index, process_count)
  threads = max(_threads(s, threads) for s in (source, *(c.held_out for c in companions.values())))
  return iter(_read(stream, threads, rows).batch(rows, batch_fn=stack))


def in_order(source, indices, *, crop, threads, ahead):
  """Returns an iterator of one pass over the examples `indices`, in that order.

  Args:
    source: a Source of images.
    indices: int [n].
    crop: function of a uint8 image [H, W, 3].
    threads: number of threads that read and decode.
    ahead: number of examples that are read in advance.

  Returns:
    An iterator of {"image": crop(image), "label": int32}, or {"label": -1} if unreadable.
  """

  def load(row):
    example = _load(source, int(indices[row]), crop)
    return {"label": np.int32(-1)} if example is None else example

  threads = _threads(source, threads)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(threads, ahead) if threads else 0
  )
  return iter(grain.MapDataset.range(len(indices)).map(load).to_iter_dataset(options))


def corrupt_images(source):
  """Returns the unreadable images so far, with prefetched ones: {"count", "seen", "names"}."""
  corrupt = source.corrupt
  return {"count": corrupt.count, "seen": corrupt.seen, "names": list(corrupt.names.values())}


class _WithCompanions(grain.MapDataset):
  """Adds the images of other streams, by name, to the examples of an infinite stream.

  An example is None if one of its parts is None.
  """

  def __init__(self, stream, others):
    super().__init__([stream, *others.values()])
    self._stream, self._others = stream, others

  def __len__(self):
    return len(self._stream)

  def __getitem__(self, index):
    example = self._stream[index]
    others = {name: stream[index] for name, stream in self._others.items()}
    if example is None or None in others.values():
      return None
    return example | {name: other["image"] for name, other in others.items()}


class _ProcessRows(grain.MapDataset):
  """Selects one process's block of each global batch.

  Grain's slicing would deal rows to processes in turn. With blocks each example keeps its row of
  the global batch, and so its random draws, for any number of processes.
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
  """Groups a stream into lists of `size` examples.

  Passing examples between threads one by one would take a tenth of the time.
  """

  def __init__(self, stream, size):
    super().__init__(stream)
    self._stream, self._size = stream, size

  def __len__(self):
    return -(-len(self._stream) // self._size)

  def __getitem__(self, index):
    start = index * self._size
    return [self._stream[i] for i in range(start, min(start + self._size, len(self._stream)))]


class _Examples(grain.IterDataset):
  """Iterates over the examples of _Chunks, without those that are None."""

  def __init__(self, chunks, size):
    super().__init__(chunks)
    self._size = size

  def __iter__(self):
    return _ExampleIterator(iter(self._parent), self._size)


class _ExampleIterator(grain.DatasetIterator):
  """The iterator of _Examples; its state is the position of the next example in the stream."""

  def __init__(self, chunks, size):
    super().__init__(chunks)
    self._size, self._next, self._chunk = size, 0, None

  def __next__(self):
    while True:
      offset = self._next % self._size
      if self._chunk is None or not offset:
        self._chunk = next(self._parent)
      if offset == len(self._chunk):
        raise StopIteration
      self._next += 1
      if self._chunk[offset] is not None:
        return self._chunk[offset]

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
  # Threads do not pay for examples that are only copied: measured on emoji they halve the speed
  # and double the CPU time.
  return 0 if isinstance(source, ArraySource | CodeSource) else threads


def _read(stream, threads, rows):
  """Reads a stream in threads, up to two batches and 512 examples ahead, without None."""
  if not threads:
    return stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  ahead = max(threads, min(2 * rows, 512))
  size = max(1, min(_CHUNK, ahead // threads))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=-(-ahead // size))
  return _Examples(_Chunks(stream, size).to_iter_dataset(options), size)


def stack(examples):
  """Stacks a list of dicts of arrays into one dict.

  The arrays are aligned to 64 bytes, so that JAX takes them over on a CPU without a copy.
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
  """Returns an example {"image": crop(image), "label": int32}, or None if it is unreadable."""
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
