"""The cache of codes that a stage trains on: opened, gone on with, or made before it trains.

Images are read and cropped on the host while the devices encode those before.
"""

import hashlib
import itertools
import json
import math
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from imgtx_jax.cli.command import Interrupted
from imgtx_jax.cli.progress import Display
from imgtx_jax.cli.stop_signals import StopSignals
from imgtx_jax.data import code_cache, pipeline, transforms
from imgtx_jax.distributed import processes, sharding
from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import explain_disk
from imgtx_jax.training import checksums

BATCH_BYTES = 16 * 2**20  # of the squares of one batch; four are in memory at once


def prepare(inputs, images, config, directory):
  """Returns the data.code_cache.CodeSource that a stage trains on; computes what is missing of it.

  Each process computes shards of its own. Finished shards stay if it is interrupted.

  Args:
    inputs: stages.base.CodeInputs.
    images: the training source.
    config: the experiment's.
    directory: the work directory.

  Raises:
    UserError: if the folder holds a cache of something else, or the disk is full.
    Interrupted: when a signal asks to stop (of several processes, only SIGINT).
  """
  folder = Path(directory) / "codes" if inputs.folder == "auto" else Path(inputs.folder)
  crop_set = make_crop_set(inputs, config)
  layout = code_cache.make_layout(
    len(images), len(crop_set.table), inputs.num_codes, inputs.codebook_size
  )
  cache = code_cache.CodeCache(folder, fingerprint(inputs, images, config), layout)
  if cache.index:
    print(f"codes: checking {cache.layout.bytes / 1e6:.3g} MB in {folder}", flush=True)
  missing = cache.missing(jax.process_index(), jax.process_count())
  everywhere = sum(int(n) for n in processes.gather(str(len(missing)).encode()))
  if everywhere or not cache.complete:
    _announce(cache, everywhere)
    if jax.process_index() == 0:
      cache.claim()
    if missing:
      _build(cache, missing, inputs, images, config, crop_set)
    processes.gather(b"all shards are written")
    if jax.process_index() == 0:
      cache.finish()
    processes.gather(b"the index is written")
  return cache.open(images)


def make_crop_set(inputs, config):
  """Returns the transforms.CropSet of CodeInputs."""
  data = config.data
  return transforms.make_crop_set(data.image_size, inputs.crops, inputs.scales, data.flip)


def fingerprint(inputs, images, config):
  """Returns {name: plain value} of what decides the codes.

  These are the tokenizer's weights and hyperparameters, the crops, and the images by name, not by
  content.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(inputs.params)
  sums = checksums.checksums({jax.tree_util.keystr(path): x for path, x in leaves})
  return {
    "format": 2,
    **{f"tokenizer.{name}": value for name, value in inputs.hyperparameters.items()},
    "tokenizer.weights": hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16],
    "image_size": config.data.image_size,
    "crops": inputs.crops,
    "scales": list(inputs.scales),
    "flip": config.data.flip,
    "data.source": config.data.source,
    "data.split": "train",
    "data.images": len(images),
    "data.names": images.digest()[:16],
  }


def batch_sizes(images, crop_set, devices):
  """Returns (B, at_once): images per batch of squares, and crops of each that are encoded at once.

  B · at_once is about `images`; B squares take not much more than BATCH_BYTES, and `devices`, the
  number of this process's devices, divides B.
  """
  rows = min(images, BATCH_BYTES // math.prod(crop_set.square_shape))
  rows = max(devices, rows // devices * devices)
  crops = len(crop_set.table)
  at_once = max(n for n in range(1, crops + 1) if crops % n == 0 and n <= max(1, images // rows))
  return rows, at_once


def compile_encoder(inputs, crop_set, dtype):
  """Compiles a function of squares uint8 [B, sides, S, S, 3] → codes [B, C, N] of dtype.

  It runs on this process's devices and does not wait for the result.
  """
  _, at_once = _batch_sizes(inputs, crop_set)
  return sharding.map_local(encode_crops(inputs.encode, crop_set, dtype, at_once), inputs.params)


def _batch_sizes(inputs, crop_set):
  """batch_sizes for about as many images a step as the stage's own takes."""
  return batch_sizes(inputs.batch_size // jax.process_count(), crop_set, jax.local_device_count())


def encode_crops(encode, crop_set, dtype, at_once):
  """Returns a function (params, squares uint8 [B, sides, S, S, 3]) → codes [B, C, N] of dtype.

  The crops are cut on the device: the host hands over each image once, not C times.

  Args:
    encode: a function (params, uint8 [n, size, size, 3]) → codes int [n, N].
    crop_set: the transforms.CropSet of the C crops.
    dtype: of the codes.
    at_once: how many crops of each image `encode` takes at a time, n = B · at_once; divides C.
  """
  steps = crop_set.table.reshape(-1, at_once, 4)

  def run(params, squares):
    def step(rows):
      crops = [transforms.take_crop(squares, row, crop_set.size) for row in rows]
      images = jax.numpy.stack(crops, axis=1)  # [B, at_once, size, size, 3]
      codes = encode(params, images.reshape(-1, *images.shape[2:]))
      return codes.reshape(len(squares), at_once, -1).astype(dtype)

    codes = jax.lax.map(step, steps)  # [C / at_once, B, at_once, N]
    return codes.transpose(1, 0, 2, 3).reshape(len(squares), len(crop_set.table), -1)

  return run


def _announce(cache, missing):
  """What is going to be made, and UserError if the disk is too small for it."""
  layout = cache.layout
  print(
    f"codes: {layout.examples} images × {layout.crops} crops × {layout.codes} codes take "
    f"{layout.bytes / 1e6:.3g} MB on disk, in {cache.folder}; shards to make: {missing} of "
    f"{layout.shards}",
    flush=True,
  )
  with explain_disk(cache.folder):
    cache.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.folder).free
  needed = missing * layout.shard_examples * layout.example_bytes
  if free < needed:
    raise UserError(
      f"the code cache needs {needed / 1e6:.3g} MB and the disk of {cache.folder} has "
      f"{free / 1e6:.3g} MB free: free some, name another folder, or use fewer crops or scales; "
      "nothing that was saved before is lost"
    )


def _build(cache, shards, inputs, images, config, crop_set):
  encode = compile_encoder(inputs, crop_set, cache.layout.dtype)
  total = sum(len(cache.layout.span(shard)) for shard in shards)
  with StopSignals() as stop, Display("codes", total, 0) as display:
    fill(
      cache,
      shards,
      images,
      encode,
      crop_set=crop_set,
      batch=_batch_sizes(inputs, crop_set)[0],
      threads=config.data.threads,
      report=_Progress(display, total, len(crop_set.table), stop, cache.folder).add,
    )


def fill(cache, shards, images, encode, *, crop_set, batch, threads, report):
  """Writes shards of a code_cache.CodeCache.

  Args:
    cache: the CodeCache.
    shards: the numbers of the shards to write.
    images: the source.
    encode: a function of squares [batch, sides, S, S, 3] → codes [batch, C, N], not waited for.
    crop_set: the transforms.CropSet.
    batch: how many images `encode` takes.
    threads: how many read and crop.
    report: report(n) is called after every n examples, and may raise to stop; finished shards stay.
  """
  spans = [cache.layout.span(shard) for shard in shards]
  counts = [[min(batch, len(s) - i) for i in range(0, len(s), batch)] for s in spans]
  stream = pipeline.in_order(
    images,
    np.concatenate([np.arange(s.start, s.stop) for s in spans]),
    crop=lambda image: transforms.resize_squares(image, crop_set),
    threads=threads,
    ahead=batch,
  )
  encoded = _encoded(stream, itertools.chain(*counts), (batch, *crop_set.square_shape), encode)
  for shard, batches in zip(shards, counts, strict=True):
    parts = []
    for part in itertools.islice(encoded, len(batches)):
      parts.append(part)
      report(len(part[0]))
    cache.write_codes(shard, *map(np.concatenate, zip(*parts, strict=True)))


def _encoded(stream, counts, shape, encode):
  """Yields (labels int32 [n], codes [n, C, N]) for every n of `counts`.

  Images are encoded in batches of `shape`, each dispatched before the last one is waited for.
  """
  before = None
  for count in counts:
    labels, squares = np.full(count, -1, np.int32), np.zeros(shape, np.uint8)
    for row, example in enumerate(itertools.islice(stream, count)):
      if example["label"] >= 0:
        labels[row], squares[row] = example["label"], example["image"]
    running = labels, encode(squares)
    if before:
      yield _fetch(*before)
    before = running
  if before:
    yield _fetch(*before)


def _fetch(labels, codes):
  codes = np.asarray(codes)[: len(labels)]
  return labels, codes * (labels >= 0)[:, None, None].astype(codes.dtype)


class _Progress:
  """Shows the rate in crops, and stops the build when a signal asks to."""

  def __init__(self, display, total, crops, stop, folder):
    self.display, self.total, self.crops = display, total, crops
    self.stop, self.folder = stop, folder
    self.done, self.counted, self.began, self.shown = 0, 0, None, 0.0
    self.every = 0.5 if sys.stdout.isatty() else 10.0

  def add(self, count):
    """After count more examples."""
    self.done += count
    now = time.monotonic()
    if self.began is None:  # the first batch compiles
      self.began, self.shown = now, now
    else:
      self.counted += count
      if now - self.shown >= self.every or self.done == self.total:
        seconds = (now - self.began) / self.counted
        self.display.update(self.done, self.crops / max(seconds, 1e-9), seconds, {})
        self.shown = now
    if self.stop.number and self.done < self.total:
      raise Interrupted(
        f"codes: stopped by {signal.Signals(self.stop.number).name} after {self.done} of "
        f"{self.total} images; finished shards are kept in {self.folder}, and the same command "
        "goes on from there",
        self.stop.number,
      )
