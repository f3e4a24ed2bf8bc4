"""Fills a cache of codes: images are read and cropped while the devices encode those before."""

import itertools
import math

import jax
import numpy as np

from imgtx_jax.data import pipeline, transforms

BATCH_BYTES = 16 * 2**20  # of the squares of one batch; four are in memory at once


def encode_crops(encode, plan, dtype, at_once):
  """A function (params, squares uint8 [B, sides, S, S, 3]) → codes [B, C, N] of dtype, of a
  transforms.CropPlan's C crops. encode(params, uint8 [n, size, size, 3]) → codes int [n, N] takes
  n = B · at_once images at a time; at_once divides C. The crops are cut on the device: the host
  hands over each image once, not C times."""
  steps = plan.table.reshape(-1, at_once, 4)

  def run(params, squares):
    def step(rows):
      crops = [transforms.take_crop(squares, row, plan.size) for row in rows]
      images = jax.numpy.stack(crops, axis=1)  # [B, at_once, size, size, 3]
      codes = encode(params, images.reshape(-1, *images.shape[2:]))
      return codes.reshape(len(squares), at_once, -1).astype(dtype)

    codes = jax.lax.map(step, steps)  # [C / at_once, B, at_once, N]
    return codes.transpose(1, 0, 2, 3).reshape(len(squares), len(plan.table), -1)

  return run


def batch_sizes(images, plan, devices):
  """(B, at_once) for about `images` images an encoder's step on that many local devices, and not
  much more than BATCH_BYTES of squares a batch."""
  rows = min(images, BATCH_BYTES // math.prod(plan.square_shape))
  rows = max(devices, rows // devices * devices)
  crops = len(plan.table)
  at_once = max(n for n in range(1, crops + 1) if crops % n == 0 and n <= max(1, images // rows))
  return rows, at_once


def build(cache, shards, images, encode, *, plan, batch, threads, report):
  """Writes these shards of a codes.CodeCache.

  images: the source; encode: squares [batch, sides, S, S, 3] → codes [batch, C, N], not waited for;
  report(n) is called after every n examples, and may raise to stop: finished shards stay.
  """
  spans = [cache.layout.span(shard) for shard in shards]
  counts = [[min(batch, len(s) - i) for i in range(0, len(s), batch)] for s in spans]
  stream = pipeline.in_order(
    images,
    np.concatenate([np.arange(s.start, s.stop) for s in spans]),
    crop=lambda image: transforms.resize_squares(image, plan),
    threads=threads,
    ahead=batch,
  )
  encoded = _encoded(stream, itertools.chain(*counts), (batch, *plan.square_shape), encode)
  for shard, batches in zip(shards, counts, strict=True):
    with cache.writing(shard) as append:
      for labels, codes in itertools.islice(encoded, len(batches)):
        append(labels, codes)
        report(len(labels))


def _encoded(stream, counts, shape, encode):
  """Yields (labels int32 [n], codes [n, C, N]) for every n of counts, encoded in batches of shape,
  each dispatched before the last one is waited for."""
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
