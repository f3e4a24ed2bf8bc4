"""Features of images on disk, in shards: a run that was broken off goes on with those left.

FOLDER/NAME-DIGEST/fingerprint.json    what the features are of, and of which network
FOLDER/NAME-DIGEST/shard-00012.npz     the parts, [n, …] each, of the images 12·SHARD onwards that
                                       could be read
FOLDER/NAME-DIGEST/moments-PART.npz    mean and covariance of a part, once they were asked for

A shard appears whole or not at all, and its archive's CRC-32s tell later damage. Processes that
share the folder fill their own shards.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.metrics import validate as feature_checks
from imgtx_jax.metrics.frechet import Moments

SHARD = 256  # images: what a kill loses


class Extractor(NamedTuple):
  """name: what stores of it are called; fingerprint: {name: plain value} of what decides its
  parts; run: an image set's batch → {part: array [n, …]}."""

  name: str
  fingerprint: dict[str, Any]
  run: Any


class FeatureStore:
  """The parts of `count` images that one Extractor gives. Raises UserError where the folder is of
  something else. shard_size: SHARD by default."""

  def __init__(self, folder, extractor, images_fingerprint, versions, count, shard_size=None):
    self.shard_size = shard_size or SHARD
    fingerprint = {
      "format": 1,
      "images": images_fingerprint,
      "extractor": {"name": extractor.name, **extractor.fingerprint},
      "versions": versions,
    }
    if shard_size:
      fingerprint["shard_size"] = shard_size
    text = json.dumps(fingerprint, sort_keys=True, indent=1)
    self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    self.folder = Path(folder) / f"{extractor.name}-{self.digest}"
    self.count = count
    path = self.folder / "fingerprint.json"
    if not path.exists():
      write_atomically(path, text.encode())
    elif path.read_text() != text:
      raise UserError(
        f"{self.folder} holds features of something else: delete it to have them made again"
      )

  @property
  def shards(self):
    """How many there are."""
    return -(-self.count // self.shard_size)

  def span(self, shard):
    """The images of a shard, a range."""
    return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

  def missing(self, process_index=0, process_count=1):
    """The shards of one process (p, p + P, …) that are absent or damaged; reads all their bytes."""
    return [s for s in range(process_index, self.shards, process_count) if not self._intact(s)]

  def write(self, shard, parts):
    """Stores the parts {name: array [n, …]} of a shard; {} where no image could be read."""
    data = io.BytesIO()
    np.savez(data, **parts)
    write_atomically(self._path(shard), data.getvalue())

  def read(self, part, rows=None):
    """One part of all images [n, …], or of the rows int [m] of them, in their order."""
    found = [chunk for chunk in self.chunks(part)] if rows is None else self._rows(part, rows)
    return np.concatenate(found) if found else np.zeros((0, 0))

  def spread(self, part, most):
    """At most so many rows of a part [n, …], spread evenly."""
    if self.count <= most:
      return self.read(part)
    total = sum(len(chunk) for chunk in self.chunks(part))
    return self.read(part, np.arange(min(most, total)) * total // min(most, total))

  def chunks(self, part):
    """Yields the part a shard at a time."""
    for shard in range(self.shards):
      with np.load(self._path(shard), allow_pickle=False) as arrays:
        if part in arrays:
          yield arrays[part]

  def moments(self, part):
    """metrics.frechet.Moments of a part [n, D]; kept, for the next to ask."""
    path = self.folder / f"moments-{part}.npz"
    if path.exists():
      try:
        with np.load(path, allow_pickle=False) as kept:
          return Moments(int(kept["count"]), kept["total"], kept["outer"])
      except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
        logging.warning("%s is damaged and is made again", path)
    moments = Moments()
    for chunk in self.chunks(part):
      moments.add(chunk)
    data = io.BytesIO()
    np.savez(data, count=moments.count, total=moments.total, outer=moments.outer)
    write_atomically(path, data.getvalue())
    return moments

  def _rows(self, part, rows):
    found, start = [], 0
    for chunk in self.chunks(part):
      inside = rows[(rows >= start) & (rows < start + len(chunk))]
      found.append(chunk[inside - start])
      start += len(chunk)
    return found

  def _path(self, shard):
    return self.folder / f"shard-{shard:05}.npz"

  def _intact(self, shard):
    path = self._path(shard)
    if not path.exists():
      return False
    try:
      with zipfile.ZipFile(path) as archive:
        intact = archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
      intact = False
    if not intact:
      logging.warning("%s is damaged: its images are done again", path)
      for kept in self.folder.glob("moments-*.npz"):
        kept.unlink(missing_ok=True)  # another process may have been here
    return intact


def fill(images, wanted, *, batch_size, report, process_index=0, process_count=1):
  """Computes what is missing in stores of one image set.

  wanted: [(FeatureStore, Extractor)]; each image is read once for all of them. report(done, total)
  is called after each batch with this process's images, and may raise to stop: whole shards stay.
  """
  missing = [set(store.missing(process_index, process_count)) for store, _ in wanted]
  shards = sorted(set().union(*missing))
  total = sum(len(wanted[0][0].span(shard)) for shard in shards)
  done = 0
  for shard in shards:
    lacking = [pair for pair, absent in zip(wanted, missing, strict=True) if shard in absent]
    parts = [[] for _ in lacking]
    for batch in images.batches(wanted[0][0].span(shard), batch_size):
      for (_, extractor), found in zip(lacking, parts, strict=True):
        found.append(_check(extractor.name, extractor.run(batch)))
      done += len(batch["row"])
      report(done, total)
    for (store, _), found in zip(lacking, parts, strict=True):
      names = found[0] if found else ()
      store.write(shard, {name: np.concatenate([f[name] for f in found]) for name in names})


def _check(name, parts):
  """The parts; UserError on NaN and infinity, now and not after all images."""
  for part, values in parts.items():
    if np.issubdtype(values.dtype, np.floating):
      rows = np.asarray(values).reshape(len(values), -1)
      feature_checks.check(f"{part} of {name}", rows, minimum=0)
  return parts
