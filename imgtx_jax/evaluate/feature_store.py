"""Features of images on disk: an io.sharded_store for each image set and each network.

FOLDER/NAME-DIGEST/                    the store; its arrays hold the images that could be read
FOLDER/NAME-DIGEST/moments-PART.npz    mean and covariance of an array, once they were asked for
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from imgtx_jax.io import npz, sharded_store
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.metrics import validate as feature_checks
from imgtx_jax.metrics.frechet import Moments

SHARD = 256  # images: what a kill loses


class Extractor(NamedTuple):
  """Computes features of images.

  name: in the names of its stores; fingerprint: {name: plain value} of what decides the features;
  run: batch of an image set → {part: array [n, …]}.
  """

  name: str
  fingerprint: dict[str, Any]
  run: Any


class FeatureStore(sharded_store.ShardedStore):
  """The features that one Extractor computes of the `count` images of a set.

  images_fingerprint, versions: identify the images and what computes. shard_size: images a shard,
  SHARD by default.
  """

  kind = "feature store"

  def __init__(self, folder, extractor, images_fingerprint, versions, count, shard_size=None):
    fingerprint = {
      "format": 2,
      "images": images_fingerprint,
      "extractor": {"name": extractor.name, **extractor.fingerprint},
      "versions": versions,
      "shard_examples": shard_size or SHARD,
    }
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    layout = sharded_store.Layout(examples=count, shard_examples=shard_size or SHARD)
    super().__init__(Path(folder) / f"{extractor.name}-{digest[:16]}", fingerprint, layout)

  @property
  def count(self):
    """Returns the number of images, unreadable ones included."""
    return self.layout.examples

  def write(self, shard, arrays):
    """Writes a shard; {} where no image could be read."""
    super().write(shard, arrays)
    for path in self.folder.glob("moments-*.npz"):  # of what was there before
      path.unlink(missing_ok=True)  # another process may have been here

  def read(self, part, rows=None):
    """Returns one array of all images [n, …], or its rows int [m], in their order."""
    chunks = list(self.chunks(part)) if rows is None else self._rows(part, rows)
    return np.concatenate(chunks) if chunks else np.zeros((0, 0))

  def spread(self, part, most):
    """Returns at most `most` rows of an array [n, …], spread evenly."""
    if self.count <= most:
      return self.read(part)
    total = sum(len(chunk) for chunk in self.chunks(part))
    return self.read(part, np.arange(min(most, total)) * total // min(most, total))

  def chunks(self, part):
    """Yields one array, a shard at a time."""
    for shard in range(self.layout.shards):
      if part in (self.checksums(shard) or ()):
        yield self.load(part, shard)

  def moments(self, part):
    """Returns metrics.frechet.Moments of an array [n, D], and keeps them for the next call."""
    path = self.folder / f"moments-{part}.npz"
    if path.exists():
      try:
        with np.load(path, allow_pickle=False) as kept:
          return Moments(int(kept["count"]), kept["total"], kept["outer"])
      except npz.DAMAGE:
        logging.warning("%s is damaged and is made again", path)
    moments = Moments()
    for chunk in self.chunks(part):
      moments.add(chunk)
    data = io.BytesIO()
    np.savez(data, count=moments.count, total=moments.total, outer=moments.outer)
    write_atomically(path, data.getvalue())
    return moments

  def _rows(self, part, rows):
    selected, start = [], 0
    for chunk in self.chunks(part):
      inside = rows[(rows >= start) & (rows < start + len(chunk))]
      selected.append(chunk[inside - start])
      start += len(chunk)
    return selected


def fill(images, wanted, *, batch_size, report, process_index=0, process_count=1):
  """Computes what is missing in stores of one image set.

  wanted: [(FeatureStore, Extractor)]; each image is read once for all of them. report(done, total)
  is called after each batch with this process's images, and may raise to stop: whole shards stay.
  """
  missing = [set(store.missing(process_index, process_count)) for store, _ in wanted]
  shards = sorted(set().union(*missing))
  total = sum(len(wanted[0][0].layout.span(shard)) for shard in shards)
  done = 0
  for shard in shards:
    lacking = [pair for pair, absent in zip(wanted, missing, strict=True) if shard in absent]
    parts = [[] for _ in lacking]
    for batch in images.batches(wanted[0][0].layout.span(shard), batch_size):
      for (_, extractor), computed in zip(lacking, parts, strict=True):
        computed.append(_check(extractor.name, extractor.run(batch)))
      done += len(batch["row"])
      report(done, total)
    for (store, _), computed in zip(lacking, parts, strict=True):
      names = computed[0] if computed else ()
      store.write(shard, {name: np.concatenate([f[name] for f in computed]) for name in names})


def _check(name, parts):
  """The parts; UserError on NaN and infinity, now and not after all images."""
  for part, values in parts.items():
    if np.issubdtype(values.dtype, np.floating):
      rows = np.asarray(values).reshape(len(values), -1)
      feature_checks.check(f"{part} of {name}", rows, minimum=0)
  return parts
