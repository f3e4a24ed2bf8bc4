"""A contact sheet: contents as rows, styles as columns, the originals at the margins."""

import numpy as np

from imgtx_jax.io.image_grid import save_grid
from imgtx_jax.style_transfer.tiled_renderer import resize

CELL = 192  # pixels


def thumbnail(image, side=CELL):
  """An image, uint8 [H, W, 3], as large as fits a white square [side, side, 3], in its middle."""
  height, width = image.shape[:2]
  scale = side / max(height, width)
  shape = max(1, round(height * scale)), max(1, round(width * scale))
  top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
  cell = np.full((side, side, 3), 255, np.uint8)
  cell[top : top + shape[0], left : left + shape[1]] = resize(image, shape)
  return cell


def strips(images, side=CELL):
  """One thumbnail of several images: a vertical strip of each, side by side."""
  cells = [thumbnail(image, side) for image in images]
  edges = [round(side * i / len(cells)) for i in range(len(cells) + 1)]
  parts = [c[:, a:b] for c, a, b in zip(cells, edges[:-1], edges[1:], strict=True)]
  return np.concatenate(parts, axis=1)


def save(path, columns, rows):
  """Writes the sheet as a PNG. columns: a thumbnail for each style; rows: lists of thumbnails, the
  content and its outputs, one for each style."""
  corner = np.full_like(columns[0], 255)
  cells = [corner, *columns, *[cell for row in rows for cell in row]]
  save_grid(np.stack(cells), path, columns=len(columns) + 1)
