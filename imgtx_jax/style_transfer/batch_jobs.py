"""Batch jobs: renders every content file in every style, and lists the files that fail."""

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
  """A file and its part of the names of outputs."""

  path: str
  name: str


class NamedStyle(NamedTuple):
  """A style that gives one output per content.

  name: its part of the names of outputs. images: its style images, uint8 [h, w, 3] each, for
  contact sheets. styles: one Style [1], or one per mask.
  """

  name: str
  images: list
  styles: list


class Content(NamedTuple):
  """A content that is ready to render.

  file: File. picture: Picture at the outputs' size. padded: float32 [H, W, 3] in [-1, 1] at the
  working size, padded. shape: the working size (h, w) without padding. masks: [K, h', w'] at the
  outputs' size, or None.
  """

  file: File
  picture: Picture
  padded: np.ndarray
  shape: tuple[int, int]
  masks: Any


class Options(NamedTuple):
  """Options of a batch job.

  size: shorter side of the working size; 0 for the content's own size. at_work_size: whether
  outputs have the working size. keep_color: one of color_and_masks.KEEP_COLOR. masks: pairs (file,
  mask [H, W] in [0, 1]): one for the whole style, one per style of a NamedStyle, or none.
  """

  size: int = 0
  at_work_size: bool = False
  keep_color: str = "no"
  masks: tuple = ()


def find(path, notes):
  """Returns the Files in and below a folder, sorted by path, or the one file.

  Lines about files that are left out are appended to the list `notes`.
  """
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


def style_names(files, apart):
  """Returns the names of the NamedStyles of style Files: one each if apart, else one of all."""
  names = [file.name.replace("/", "_") for file in files]
  return names if apart else ["+".join(names)]


def read_styles(renderer: StyleRenderer, files, *, apart, weights, masked, size):
  """Reads and encodes style Files.

  Args:
    renderer: StyleRenderer.
    files: style Files.
    apart: whether each file is a style of its own, and files that fail are left out. Otherwise all
      files are one style.
    weights: of the mixture, if not apart.
    masked: whether each file of one style has a mask of its own; they are then not mixed.
    size: side to which style images are resized.

  Returns:
    A list of NamedStyles, and a line for each file that failed.

  Raises:
    UserError: if no file can be read, or, if not apart, one cannot be read.
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
    # Contact sheets need no more; all paintings of a folder in full would fill the memory.
    images.append(transforms.center_crop(image, size))
    read.append(file)
  if not styles:
    raise UserError(f"none of {len(files)} styles can be read: {failures[0]}")
  if apart:
    parts = zip(style_names(read, apart), images, styles, strict=True)
    return [NamedStyle(name, [image], [style]) for name, image, style in parts], failures
  if not masked:
    styles = [mix(styles, weights)]
  (name,) = style_names(read, apart)
  return [NamedStyle(name, images, [renderer.at_strength(s) for s in styles])], failures


def open_content(renderer: StyleRenderer, file, options: Options):
  """Reads a File as Content; raises UserError if it cannot be read or a mask has another size."""
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
      # Linear if it grows: cubic interpolation would overshoot where the mask must stay 0.
      linear = cv2.INTER_AREA if shape[0] < masks.shape[1] else cv2.INTER_LINEAR
      masks = np.stack([cv2.resize(m, shape[::-1], interpolation=linear) for m in masks])
  work = renderer.padded(resize(visible(picture), shape))
  return Content(file, picture, np.clip(work, -1, 1), shape, masks)


def visible(picture):
  """Returns a Picture as float32 [H, W, 3] in [-1, 1].

  Fully transparent pixels get the mean of the others: their hidden colours would bleed into
  neighbours.
  """
  image = picture.rgb / np.float32(127.5) - 1
  if picture.alpha is not None:
    hidden = picture.alpha == 0
    if hidden.any() and not hidden.all():
      image[hidden] = image[~hidden].mean(0)
  return image


def render(renderer: StyleRenderer, files, styles, options: Options, failures):
  """Renders all pairs of a content and a style.

  Args:
    renderer: StyleRenderer.
    files: content Files.
    styles: NamedStyles.
    options: Options.
    failures: list to which a line is appended for each content that fails.

  Yields:
    (Content, NamedStyle, output Picture) for each pair, contents first.
  """
  pending = []
  for file in files:
    try:
      content = open_content(renderer, file, options)
    except UserError as error:
      failures.append(str(error))
      continue
    for style in styles:
      if pending and pending[0][0].padded.shape != content.padded.shape:
        yield from _flush(renderer, pending, options)
        pending = []
      pending.append((content, style))
      if sum(len(other.styles) for _, other in pending) >= renderer.room(content.padded.shape[:2]):
        yield from _flush(renderer, pending, options)
        pending = []
  if pending:
    yield from _flush(renderer, pending, options)


def _flush(renderer, pending, options):
  """Renders pending pairs (Content, NamedStyle) of equal shape in one batch; yields as render."""
  pairs = [(content.padded, style) for content, named in pending for style in named.styles]
  rendered = renderer.render([c for c, _ in pairs], [style for _, style in pairs])
  for content, named in pending:
    own, rendered = rendered[: len(named.styles)], rendered[len(named.styles) :]
    yield content, named, finish(renderer, content, own, options)


def finish(renderer: StyleRenderer, content: Content, rendered, options: Options):
  """Returns the output Picture of a content.

  Args:
    renderer: StyleRenderer.
    content: Content.
    rendered: [K, H, W, 3], its renderings in the K styles of a NamedStyle.
    options: Options.
  """
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
