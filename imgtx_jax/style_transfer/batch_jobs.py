"""Contents × looks: files in, pictures out, in batches. What fails is listed, the rest goes on."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from imgtx_jax.data import sources, transforms
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files
from imgtx_jax.io.image_files import Picture, resize
from imgtx_jax.models.style_encoder import mix
from imgtx_jax.style_transfer import color_and_masks
from imgtx_jax.style_transfer.tiled_renderer import StyleRenderer


class File(NamedTuple):
  """A file, and its name in the names of outputs."""

  path: str
  name: str


class Look(NamedTuple):
  """name: in the names of outputs; images: of its styles, uint8 [h, w, 3] each; styles: what the
  renderer takes, one, or one a mask."""

  name: str
  images: list
  styles: list


class Content(NamedTuple):
  """file; picture: of the size of the outputs; padded: float32 [H, W, 3] in [-1, 1], of the size to
  work at, which is `shape` without the padding; masks: [K, h, w], or None."""

  file: File
  picture: Picture
  padded: np.ndarray
  shape: tuple[int, int]
  masks: Any


class Options(NamedTuple):
  """size: of the shorter side to work at, 0 for the content's own; at_work_size: whether outputs
  have it too; keep_color: one of style_controls.KEEP_COLOR; masks: [(file, [H, W] in [0, 1])], one
  for every look as a whole or one for each of its styles, or none."""

  size: int = 0
  at_work_size: bool = False
  keep_color: str = "no"
  masks: tuple = ()


def find(path, notes):
  """The Files in a folder and below it, in the order of their paths, or the one file. Lines on what
  is left out are added to the list `notes`."""
  if not Path(path).is_dir():
    return [File(str(path), Path(path).stem)]
  source = sources.open_files(path)
  files = source.files
  notes += source.notes
  stems = [str(Path(file).with_suffix("")) for file in files]
  counts = Counter(stems)
  # a.jpg and a.png keep their suffixes: else one would overwrite the output of the other.
  names = [s if counts[s] == 1 else f for s, f in zip(stems, files, strict=True)]
  return [File(str(Path(path, f)), name) for f, name in zip(files, names, strict=True)]


def look_names(files, apart):
  """The names of the Looks of style Files: of each, or of all as one."""
  names = [file.name.replace("/", "_") for file in files]
  return names if apart else ["+".join(names)]


def read_looks(renderer: StyleRenderer, files, *, apart, weights, masked, size):
  """(the Looks of style Files, a line for each that failed).

  apart: each is a look of its own (a folder's; those that fail are left out). Else all are one
  look: mixed by the weights, or if masked each in its own place.
  """
  styles, images, failures, read = [], [], [], []
  for file in files:
    try:
      image = image_files.read(file.path).on_white()
    except UserError as error:
      if not apart:
        raise
      failures.append(str(error))
      continue
    style = renderer.encode(image, size)
    styles.append(renderer.at_strength(style) if apart else style)
    # Enough to show it; a folder's whole paintings would fill the memory.
    images.append(transforms.center_crop(image, size))
    read.append(file)
  if not styles:
    raise UserError(f"none of {len(files)} styles can be read: {failures[0]}")
  if apart:
    parts = zip(look_names(read, apart), images, styles, strict=True)
    return [Look(name, [image], [style]) for name, image, style in parts], failures
  if not masked:
    styles = [mix(styles, weights)]
  (name,) = look_names(read, apart)
  return [Look(name, images, [renderer.at_strength(style) for style in styles])], failures


def open_content(renderer: StyleRenderer, file, options: Options):
  """The Content of a File; UserError if it cannot be read or a mask does not fit it."""
  picture = image_files.read(file.path)
  for path, mask in options.masks:
    if mask.shape != picture.rgb.shape[:2]:
      height, width = mask.shape
      raise UserError(
        f"the mask {path} is {width}×{height} pixels and {file.path} is {picture.size}; make a "
        "mask of the content's size"
      )
  shape = picture.rgb.shape[:2]
  if options.size:
    shape = image_files.scaled_shape(*shape, options.size)
  masks = np.stack([mask for _, mask in options.masks]) if options.masks else None
  if options.at_work_size and shape != picture.rgb.shape[:2]:
    alpha = None if picture.alpha is None else resize(picture.alpha, shape)
    picture = Picture(resize(picture.rgb, shape), alpha, picture.profile)
    if masks is not None:
      # Linear where it grows: a cubic would overshoot around the mask, which must stay 0.
      linear = cv2.INTER_AREA if shape[0] < masks.shape[1] else cv2.INTER_LINEAR
      masks = np.stack([cv2.resize(m, shape[::-1], interpolation=linear) for m in masks])
  work = renderer.padded(resize(visible(picture), shape))
  return Content(file, picture, np.clip(work, -1, 1), shape, masks)


def visible(picture):
  """Float32 [H, W, 3] in [-1, 1]; pixels that are wholly transparent, whose colours nobody sees,
  have the mean of the others: else they would stain their neighbours."""
  image = picture.rgb / np.float32(127.5) - 1
  if picture.alpha is not None:
    hidden = picture.alpha == 0
    if hidden.any() and not hidden.all():
      image[hidden] = image[~hidden].mean(0)
  return image


def render(renderer: StyleRenderer, files, looks, options: Options, failures):
  """Yields (Content, Look, the output Picture) for every pair of a content File and a Look, in
  order. Lines about contents that fail are added to the list `failures`."""
  pending = []
  for file in files:
    try:
      content = open_content(renderer, file, options)
    except UserError as error:
      failures.append(str(error))
      continue
    for look in looks:
      if pending and pending[0][0].padded.shape != content.padded.shape:
        yield from _flush(renderer, pending, options)
        pending = []
      pending.append((content, look))
      if sum(len(other.styles) for _, other in pending) >= renderer.room(content.padded.shape[:2]):
        yield from _flush(renderer, pending, options)
        pending = []
  if pending:
    yield from _flush(renderer, pending, options)


def _flush(renderer, pending, options):
  pairs = [(content.padded, style) for content, look in pending for style in look.styles]
  rendered = renderer.render([c for c, _ in pairs], [style for _, style in pairs])
  for content, look in pending:
    own, rendered = rendered[: len(look.styles)], rendered[len(look.styles) :]
    yield content, look, finish(renderer, content, own, options)


def finish(renderer: StyleRenderer, content: Content, rendered, options: Options):
  """The output Picture of a content and its renderings [K, H, W, 3] in the styles of a look."""
  height, width = content.shape
  base = visible(content.picture)
  images = [renderer.finish(base, image[:height, :width]) for image in rendered]
  images = [color_and_masks.keep_color(image, base, options.keep_color) for image in images]
  kept = np.zeros(base.shape[:2], bool)  # pixels that are the content's own
  if content.masks is None:
    (image,) = images
  else:
    image = color_and_masks.blend(base, images, content.masks)
    kept |= content.masks.sum(0) == 0
  if content.picture.alpha is not None:
    kept |= content.picture.alpha == 0
  rgb = np.where(kept[..., None], content.picture.rgb, transforms.denormalize(image))
  return Picture(rgb, content.picture.alpha, content.picture.profile)
