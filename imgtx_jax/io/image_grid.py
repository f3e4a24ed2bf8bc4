"""Grids of images as PNG files."""

import io
import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imgtx_jax.io.atomic import write_atomically

GUTTER = 2  # pixels
_CAPTION = 14  # pixels


def save_grid(images, path, columns=None, scale=1, captions=None, gutter=GUTTER):
  """Writes images [n, H, W, 3] (uint8, or float in [-1, 1]) as one PNG with thin white gutters.

  Rows are filled first, columns to a row (by default about as many as rows); scale enlarges every
  pixel to a square of that side. n captions stand under the images, one for each row to its left.
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
  # Pillow's own font lacks accents and signs such as ×.
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


def _as_bytes(images):
  if images.dtype == np.uint8:
    return images
  images = np.nan_to_num(images.astype(np.float32))
  return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def _shorten(text, font, width):
  """As much of text as fits width pixels."""
  while len(text) > 1 and font.getlength(text) > width:
    text = text[:-2].rstrip("…") + "…"
  return text
