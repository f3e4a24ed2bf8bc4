"""Sets of images that evaluation reads a batch at a time: never all of them are in memory."""

import abc
import hashlib
import math
import os
import time
import zipfile
from pathlib import Path

import numpy as np

from imgtx_jax.data import pipeline, sources, transforms
from imgtx_jax.errors import UserError, first_line
from imgtx_jax.io import npz


class ImageSet(abc.ABC):
  """Images of one size, read a batch at a time.

  count: how many. size: (height, width). labelled: whether their labels mean something.
  fingerprint: {name: plain value} of all that decides the images; protocols hold it too.
  """

  count: int
  size: tuple[int, int]
  fingerprint: dict
  labelled = False
  notes: list | tuple = ()

  @abc.abstractmethod
  def batches(self, rows, batch_size):
    """Yields batches of up to batch_size of the images `rows`, a range, in order.

    A batch is {"image": uint8 [n, H, W, 3], "label": int32 [n], "row": int64 [n],
    "seconds": float32 [n], what drawing took or 0}. Unreadable images are left out.
    """


class SourceImages(ImageSet):
  """Images of a data source.

  limit: at most this many (0: all), spread evenly, because classes come in order. size: the side of
  their centred squares; None takes them as they are, and they must have one size.
  """

  def __init__(self, source, fingerprint, *, size=None, limit=0, threads=4, labelled=False):
    self.count = min(limit or len(source), len(source))
    self.source, self.side, self.threads = source, size, threads
    self.notes = source.notes
    self.labelled = labelled
    self.indices = np.arange(self.count) * len(source) // max(self.count, 1)
    self.size = (size, size) if size else self._find_size()
    self.fingerprint = fingerprint | {"count": self.count, "size": list(self.size)}

  def batches(self, rows, batch_size):
    held, places = [], []
    for row, example in zip(rows, self._examples(rows, batch_size), strict=True):
      if example["label"] >= 0:
        self._check_size(row, example["image"])
        held.append(example)
        places.append(row)
      if held and (len(held) == batch_size or row == rows[-1]):
        yield batch([e["image"] for e in held], [e["label"] for e in held], places)
        held, places = [], []

  def _examples(self, rows, ahead):
    crop = (lambda image: transforms.center_crop(image, self.side)) if self.side else _as_it_is
    indices = self.indices[rows.start : rows.stop]
    return pipeline.in_order(self.source, indices, crop=crop, threads=self.threads, ahead=ahead)

  def _find_size(self):
    """Returns the size of the first image that can be read."""
    for row in range(self.count):
      (example,) = self._examples(range(row, row + 1), 1)
      if example["label"] >= 0:
        return example["image"].shape[:2]
    raise UserError(f"none of {self.count} images can be read, such as {self.source.name(0)}")

  def _check_size(self, row, image):
    if image.shape[:2] != tuple(self.size):
      name = self.source.name(int(self.indices[row]))
      raise UserError(
        f"{name} has {sides(image.shape)} pixels, and the images before it {sides(self.size)}: "
        "make them one size, or have --image_size crop and resize them"
      )


class NpzImages(ImageSet):
  """Images of an .npz as ADM writes them.

  It holds arr_0 uint8 [n, H, W, 3] and in some files arr_1, labels [n]. They are read a batch at a
  time out of the archive, compressed or not.
  """

  def __init__(self, path, *, limit=0):
    self.path = Path(path)
    with self._open() as member:
      shape = self._read_header(member)
      self._start = member.tell()
    with zipfile.ZipFile(self.path) as archive:
      length = archive.getinfo("arr_0.npy").file_size
    if length != self._start + math.prod(shape):
      raise self._damaged("arr_0", f"{list(shape)} images do not take {length:,} bytes")
    self.total, self.size = shape[0], tuple(shape[1:3])
    self.count = min(limit or self.total, self.total)
    self.labels = self._read_labels()
    self.labelled = self.labels is not None
    self.fingerprint = {
      "kind": "npz",
      "path": str(self.path.resolve()),
      "sha256": hash_file(self.path),
      "count": self.count,
      "size": list(self.size),
    }

  def batches(self, rows, batch_size):
    row_bytes = self.size[0] * self.size[1] * 3
    with self._open() as member:
      self._read_header(member)
      if rows.start:  # read from the start to the end, the archive's CRC-32 is checked
        member.seek(self._start + rows.start * row_bytes)
      for start in range(rows.start, rows.stop, batch_size):
        n = min(batch_size, rows.stop - start)
        data = self._read(member, n * row_bytes)
        images = np.frombuffer(data, np.uint8).reshape(n, *self.size, 3)
        labels = self.labels[start : start + n] if self.labelled else np.zeros(n)
        yield batch(images, labels, np.arange(start, start + n))

  def _open(self):
    try:
      return zipfile.ZipFile(self.path).open("arr_0.npy")
    except KeyError as error:
      raise UserError(
        f"{self.path} has no arr_0; images are expected there as uint8 [n, height, width, 3]"
      ) from error
    except npz.DAMAGE as error:
      raise UserError(
        f"{self.path} is no whole .npz ({first_line(error)}); name another file"
      ) from error

  def _read_header(self, member):
    try:
      version = np.lib.format.read_magic(member)
      read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
      )
      shape, fortran, dtype = read(member)
    except npz.DAMAGE as error:
      raise self._damaged("arr_0", first_line(error)) from error
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or not shape[0]:
      raise UserError(
        f"{self.path}: arr_0 is {dtype} {list(shape)}; give uint8 images [n, height, width, 3]"
      )
    return shape

  def _read(self, member, size):
    try:
      data = member.read(size)
    except npz.DAMAGE as error:
      raise self._damaged("arr_0", first_line(error)) from error
    if len(data) != size:
      raise self._damaged("arr_0", "it ends early")
    return data

  def _damaged(self, name, reason):
    return UserError(f"{self.path}: {name} is damaged ({reason}); make the file again")

  def _read_labels(self):
    try:
      with np.load(self.path, allow_pickle=False) as arrays:
        labels = arrays["arr_1"] if "arr_1" in arrays else np.zeros(0)
    except npz.DAMAGE as error:
      raise self._damaged("arr_1", first_line(error)) from error
    if labels.shape != (self.total,):
      return None
    if labels.dtype.kind not in "iu":
      raise self._damaged("arr_1", f"labels are {labels.dtype}, not whole numbers")
    if labels.min() < 0 or labels.max() >= 2**31:
      raise self._damaged("arr_1", f"labels are from {labels.min()} to {labels.max()}")
    return labels.astype(np.int32)


class DrawnImages(ImageSet):
  """Images that a sampler.Sampler draws; image i has labels[i] of int [count] and the number i."""

  labelled = True

  def __init__(self, sampler, labels, size, fingerprint):
    self.sampler, self.labels = sampler, labels
    self._compiled = False
    self.count, self.size = len(labels), tuple(size)
    self.fingerprint = fingerprint | {"count": self.count, "size": list(self.size)}

  def batches(self, rows, batch_size):
    step = min(self.sampler.batch_size, batch_size)
    for start in range(rows.start, rows.stop, step):
      index = np.arange(start, min(start + step, rows.stop))
      # The last batch is filled up: no second program for its size.
      padded = np.resize(index, min(step, self.count))
      began = time.monotonic()
      images, _ = self.sampler.draw(self.labels[padded], index=padded)
      # The first batch compiles: its time says nothing.
      seconds = (time.monotonic() - began) / len(padded) if self._compiled else 0.0
      self._compiled = True
      yield batch(images[: len(index)], self.labels[index], index, seconds)


def open_files(path, *, size=None, limit=0):
  """Returns the ImageSet of a folder (the images in it and below) or an .npz file."""
  path = Path(path)
  if path.is_dir():
    source = sources.open_files(path)
    return SourceImages(source, folder_fingerprint(source), size=size, limit=limit)
  if path.suffix == ".npz" and path.is_file():
    return NpzImages(path, limit=limit)
  raise UserError(f"{path} is no folder of images and no .npz file; name one that is there")


def open_data(name, split, *, path="", size, limit=0, threads=4):
  """Returns the ImageSet of a split ("train", "validation") of a data source, as squares."""
  source = sources.open_source(name, split=split, path=path)
  fingerprint = {
    "kind": "data",
    "source": name,
    "path": str(Path(path).resolve()) if path else "",
    "split": split,
    "names": source.digest(),
  }
  options = dict(size=size, limit=limit, threads=threads, labelled=True)
  return SourceImages(source, fingerprint, **options)


def sides(shape):
  """Returns height and width in words."""
  return f"{shape[0]}×{shape[1]}"


def hash_file(path):
  """Returns the SHA-256 of a file's bytes, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(source):
  """Returns a fingerprint of names, sizes and times of change; the contents are not read."""
  listed = hashlib.sha256()
  for file in source.files:
    try:
      found = os.stat(os.path.join(source.root, file))
      state = f"{found.st_size}\n{found.st_mtime_ns}"
    except OSError as error:  # a broken link: reading it says so
      state = error.strerror
    listed.update(f"{file}\n{state}\n".encode("utf-8", "surrogateescape"))
  return {"kind": "folder", "path": str(Path(source.root).resolve()), "files": listed.hexdigest()}


def batch(images, labels, rows, seconds=0.0):
  """Returns a batch as ImageSet.batches yields it; images: a list or an array."""
  return {
    "image": np.stack(images) if isinstance(images, list) else images,
    "label": np.asarray(labels, np.int32),
    "row": np.asarray(rows, np.int64),
    "seconds": np.full(len(rows), seconds, np.float32),
  }


def _as_it_is(image):
  return image
