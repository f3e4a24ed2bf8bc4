"""Pairs of a content and a style image, and image sets of what a method makes of them."""

import functools
import os
from pathlib import Path

import numpy as np

from imgtx_jax.data import sources, transforms
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import image_sets

_KEPT = 64  # images of a folder in memory


class Folder:
  """Images of a folder and below it, as squares uint8 [size, size, 3]; names: the files' stems."""

  def __init__(self, flag, path, size):
    if not Path(path).is_dir():
      raise UserError(f"{flag}={path} is no folder of images; name one that is there")
    source = sources.open_files(path)
    self.files = [os.path.join(path, file) for file in source.files]
    self.names = [Path(file).stem for file in self.files]
    self.fingerprint, self.notes = image_sets.folder_fingerprint(source), source.notes
    if doubled := sorted({name for name in self.names if self.names.count(name) > 1}):
      raise UserError(
        f"{flag}={path} has two images called {doubled[0]!r}, and outputs go by these names: "
        "rename one"
      )
    self.read = functools.lru_cache(_KEPT)(lambda i: transforms.read_image(self.files[i], size))


class Pairs:
  """Every content with every style, contents first.

  limit: at most this many pairs, spread evenly (0: all). size: side of the squares that all images
  are cropped and resized to.
  """

  def __init__(self, contents, styles, *, size, limit=0):
    self.contents, self.styles = (
      Folder("--content", contents, size),
      Folder("--style", styles, size),
    )
    self.size = size
    total = len(self.contents.names) * len(self.styles.names)
    self.count = min(limit or total, total)
    # [count, 2]: the numbers of content and style.
    index = np.arange(self.count) * total // self.count
    self.places = np.stack(np.divmod(index, len(self.styles.names)), axis=1)
    self.fingerprint = {
      "content": self.contents.fingerprint,
      "style": self.styles.fingerprint,
      "of_pairs": total,
      "count": self.count,
      "size": [size, size],
      "crop": "the centred square, area-averaged or cubic",
    }

  def content(self, rows):
    """Returns the content images of pairs, uint8 [n, S, S, 3]."""
    return np.stack([self.contents.read(i) for i in self.places[rows, 0].tolist()])

  def style(self, rows):
    """Returns the style images of pairs, uint8 [n, S, S, 3]."""
    return np.stack([self.styles.read(i) for i in self.places[rows, 1].tolist()])

  def name(self, row):
    """Returns the name of a pair's output: CONTENT--STYLE, of the files' stems."""
    content, style = self.places[row]
    return f"{self.contents.names[content]}--{self.styles.names[style]}"


class Outputs(image_sets.ImageSet):
  """The image set of a Method's outputs of Pairs."""

  def __init__(self, method, pairs):
    self.method, self.pairs = method, pairs
    self.count, self.size = pairs.count, (pairs.size, pairs.size)
    self.fingerprint = {
      "kind": "style outputs",
      "method": {"name": method.name, **method.fingerprint},
      "pairs": pairs.fingerprint,
    }

  def batches(self, rows, batch_size):
    for start in range(rows.start, rows.stop, batch_size):
      index = np.arange(start, min(start + batch_size, rows.stop))
      images = self.method.apply(self.pairs.content(index), self.pairs, index)
      yield image_sets.batch(images, np.zeros(len(index)), index)


class RepeatedOutputs(image_sets.ImageSet):
  """The image set of a Method applied `rounds` times to its own outputs, in 8 bits, in one style.

  count: at most this many pairs, spread evenly. The batches' images are uint8 [n, R, S, S, 3],
  after the R rounds in `seen`; their rows are those of the Pairs.
  """

  def __init__(self, method, pairs, *, count, rounds):
    self.method, self.pairs, self.rounds = method, pairs, rounds
    self.seen = sorted({1, rounds // 4, rounds // 2, rounds} - {0})
    self.count, self.size = min(count, pairs.count), (pairs.size, pairs.size)
    self.rows = np.arange(self.count) * pairs.count // self.count
    self.fingerprint = {
      "kind": "repeated style outputs",
      "method": {"name": method.name, **method.fingerprint},
      "pairs": pairs.fingerprint,
      "count": self.count,
      "rounds": rounds,
    }

  def batches(self, rows, batch_size):
    for start in range(rows.start, rows.stop, batch_size):
      index = self.rows[start : min(start + batch_size, rows.stop)]
      images, kept = self.pairs.content(index), []
      for count in range(1, self.rounds + 1):
        images = self.method.apply(images, self.pairs, index)
        if count in self.seen:
          kept.append(images)
      yield image_sets.batch(np.stack(kept, axis=1), np.zeros(len(index)), index)
