"""The methods that evaluation compares: baselines, a trained stylizer, a folder of outputs."""

import abc
import copy
import functools
import os
from pathlib import Path

import jax
import numpy as np

from imgtx_jax.data import sources, transforms
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import extractors, image_sets
from imgtx_jax.metrics import style as style_metrics
from imgtx_jax.models.style_encoder import mix
from imgtx_jax.style_transfer.stylizer import load_stylizer
from imgtx_jax.training import workdir

_KEPT = 64  # styles in memory
_TOKENIZER = ("patch", "window", "tokenizer_kind", "encoder.", "quantizer.")
_MODEL = (*_TOKENIZER, "generator.", "style_encoder.")


class Method(abc.ABC):
  """A method of style transfer.

  name: of its row. fingerprint: {name: plain value} of what decides its outputs. repeats: whether
  it can be applied to its own output.
  """

  name: str
  fingerprint: dict
  repeats = False

  @abc.abstractmethod
  def apply(self, contents, pairs, rows):
    """Returns uint8 images [n, S, S, 3] in the styles of the Pairs' rows int [n]."""


class Identity(Method):
  """Returns the content as it is: the best value of content measures."""

  name, fingerprint = "identity", {}

  def apply(self, contents, pairs, rows):
    return contents


class StyleCopy(Method):
  """Returns the style image: the best value of style measures."""

  name, fingerprint = "style copy", {}

  def apply(self, contents, pairs, rows):
    return pairs.style(rows)


class ColorTransfer(Method):
  """Gives each colour channel the style's mean and standard deviation."""

  name, repeats = "colour mean-std", True
  fingerprint = {"rule": "mean and deviation of each RGB channel, clipped"}

  def apply(self, contents, pairs, rows):
    images, styles = (x.astype(np.float32) / 127.5 - 1 for x in (contents, pairs.style(rows)))
    return transforms.denormalize(style_metrics.transfer_color(images, styles))


class Model(Method):
  """A trained stylizer.

  config: of its work directory. strength: of the style, in [0, 1]. Styles used last stay encoded.
  """

  name, repeats = "this model", True

  def __init__(self, stylizer, config, batch_size, strength=1.0):
    self.stylizer, self.batch_size, self.strength = stylizer, batch_size, strength
    if strength < 1:
      self.name, self.repeats = f"strength {strength:g}", False
    self._style = functools.lru_cache(_KEPT)(lambda pairs, i: self.encode(pairs.styles.read(i)))
    self.fingerprint = {
      "weights": extractors.digest(stylizer.weights),
      "networks": extractors.hyperparameters(config, _MODEL),
    }
    if strength < 1:
      self.fingerprint["strength"] = strength

  def apply(self, contents, pairs, rows):
    parts = []
    for start in range(0, len(rows), self.batch_size):
      # The last batch is filled up: no second program for its size.
      batch = np.arange(start, start + self.batch_size) % len(rows)
      styles = [self._style(pairs, i) for i in pairs.places[rows[batch], 1].tolist()]
      style = jax.tree.map(lambda *x: np.concatenate(x), *styles)
      images = self.stylizer.render(contents[batch].astype(np.float32) / 127.5 - 1, style)
      parts.append(transforms.denormalize(np.asarray(images)))
    return np.concatenate(parts)[: len(rows)]

  def single(self):
    """Returns the same method with a batch size of 1."""
    found = copy.copy(self)
    found.batch_size = 1
    return found

  def encode(self, style):
    """Returns the Style of one image uint8 [S, S, 3] at the strength; batch 1, NumPy arrays."""
    style = self.stylizer.styles(style[None].astype(np.float32) / 127.5 - 1)
    if self.strength < 1:
      parts = [1.0 - self.strength, self.strength]
      style = mix([self.stylizer.null(1), style], parts)
    return jax.device_get(style)


class Files(Method):
  """The outputs of another method: FOLDER/CONTENT--STYLE.png (or .jpg, .webp), of any size."""

  def __init__(self, name, folder, pairs):
    self.name, self.folder = name, folder
    if not Path(folder).is_dir():
      raise UserError(f"--outputs={name}={folder} is no folder of images; name one that is there")
    source = sources.open_files(folder)
    self.fingerprint = image_sets.folder_fingerprint(source)
    found = {os.path.splitext(file)[0]: file for file in source.files}
    missing = [row for row in range(pairs.count) if pairs.name(row) not in found]
    if missing:
      raise UserError(
        f"--outputs={name}={folder} lacks {len(missing)} of {pairs.count} outputs, such as "
        f"{pairs.name(missing[0])}.png (the names of content and style): add them, or leave it out"
      )
    self.files = [os.path.join(folder, found[pairs.name(row)]) for row in range(pairs.count)]

  def apply(self, contents, pairs, rows):
    return np.stack([transforms.read_image(self.files[row], pairs.size) for row in rows])


def open_methods(pairs, *, directory, outputs, batch_size, checkpoint="last", strengths=()):
  """Returns the Methods to compare on Pairs.

  They are the baselines, the style stage of a work directory (or None; checkpoint: "last" or
  "best") at strength 1 and at each of strengths, and the folders of outputs, texts NAME=FOLDER.
  """
  methods = [Identity(), StyleCopy(), ColorTransfer()]
  if directory:
    config, _ = workdir.read(directory)
    stylizer = load_stylizer(directory, checkpoint)
    if pairs.size % stylizer.multiple:
      raise UserError(
        f"--image_size={pairs.size} is no multiple of {stylizer.multiple}, the patch of the style "
        f"stage in {directory}: ask for one"
      )
    strengths = sorted({*strengths, 1})
    methods += [Model(stylizer, config, batch_size, strength) for strength in strengths]
  for text in outputs:
    name, _, folder = text.partition("=")
    if not name or not folder or name in [method.name for method in methods]:
      raise UserError(f"--outputs={text}: give NAME=FOLDER, each NAME once")
    methods.append(Files(name, folder, pairs))
  return methods
