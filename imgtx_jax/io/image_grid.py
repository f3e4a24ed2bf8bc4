"""Grids of images and contact sheets as PNG files."""

import io
import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.io.image_files import resize

GUTTER = 2  # pixels
CELL = 192  # side of a thumbnail in pixels
_CAPTION = 14  # height in pixels


def save_grid(images, path, columns=None, scale=1, captions=None, gutter=GUTTER):
  """Writes images as one PNG file, row by row, with white gutters.

  Args:
    images: [n, H, W, 3], uint8, or float in [-1, 1].
    path: of the file.
    columns: images per row; by default the grid is about square.
    scale: integer factor by which images are enlarged.
    captions: n texts to put under the images, or one per row to put on its left.
    gutter: pixels between images.

  Raises:
    ValueError: for another number of captions.
  """
  images = _as_bytes(np.asarray(images))
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  n, height, width, _ = images.shape
  columns = min(columns or math.ceil(math.sqrt(n)), n)
  rows = math.ceil(n / columns)
  captions = list(captions or ())
  if len(captions) not in (0, rows, n):
    raise ValueError(f"{len(captions)} captions for {n} images in {rows} rows: give {n} or {rows}")
  below = _CAPTION if len(captions) == n else 0
  # Pillow's default font lacks accents and signs such as ×.
  font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size=9)
  left = 0
  if captions and not below:
    left = math.ceil(max(font.getlength(caption) for caption in captions)) + 8
  step_x, step_y = width + gutter, height + below + gutter
  size = (left + columns * step_x + gutter, rows * step_y + gutter)
  canvas = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(canvas)
  for i, image in enumerate(images):
    x, y = left + gutter + i % columns * step_x, gutter + i // columns * step_y
    canvas.paste(Image.fromarray(image), (x, y))
    if below:
      text = _shorten(captions[i], font, width)
      draw.text((x + width / 2, y + height + 1), text, "#333", font, anchor="ma")
    elif left and i % columns == 0:
      text = captions[i // columns]
      draw.text((left - 4, y + height / 2), text, "#333", font, anchor="rm")
  data = io.BytesIO()
  canvas.save(data, "png", optimize=True)
  write_atomically(path, data.getvalue())


def thumbnail(image, side=CELL):
  """Fits an image, uint8 [H, W, 3], into the middle of a white square [side, side, 3]."""
  height, width = image.shape[:2]
  scale = side / max(height, width)
  shape = max(1, round(height * scale)), max(1, round(width * scale))
  top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
  cell = np.full((side, side, 3), 255, np.uint8)
  cell[top : top + shape[0], left : left + shape[1]] = resize(image, shape)
  return cell


def strips_thumbnail(images, side=CELL):
  """Returns one thumbnail [side, side, 3] of several images: a vertical strip of each."""
  cells = [thumbnail(image, side) for image in images]
  edges = [round(side * i / len(cells)) for i in range(len(cells) + 1)]
  parts = [c[:, a:b] for c, a, b in zip(cells, edges[:-1], edges[1:], strict=True)]
  return np.concatenate(parts, axis=1)


def save_contact_sheet(path, styles, rows):
  """Writes a contact sheet as a PNG file: contents as rows, styles as columns.

  Args:
    path: of the file.
    styles: a thumbnail for each style, for the top row.
    rows: for each content a list of thumbnails: the content and its outputs in each style.
  """
  corner = np.full_like(styles[0], 255)
  cells = [corner, *styles, *[cell for row in rows for cell in row]]
  save_grid(np.stack(cells), path, columns=len(styles) + 1)


def _as_bytes(images):
  """Converts float images in [-1, 1] to uint8, NaN to grey."""
  if images.dtype == np.uint8:
    return images
  images = np.nan_to_num(images.astype(np.float32))
  return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def _shorten(text, font, width):
  """Cuts text to a width in pixels, with an ellipsis."""
  while len(text) > 1 and font.getlength(text) > width:
    text = text[:-2].rstrip("…") + "…"
  return text
