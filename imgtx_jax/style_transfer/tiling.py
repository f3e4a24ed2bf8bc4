"""Renders an image in overlapping tiles and blends them without seams.

At each inner border of a tile a margin is discarded, where a network lacks half of its context, and
a linear ramp follows. Tiles start at multiples of `step`, so that patches and windows of a network
have the same positions in a tile as in the whole image.

Lengths are in pixels.
"""

import numpy as np


def tile_starts(length, largest, overlap, step):
  """Covers a length by the fewest tiles, of equal sides.

  Args:
    length: to cover.
    largest: longest side of a tile, a multiple of step, more than overlap.
    overlap: least overlap of neighbours, a multiple of step.
    step: starts and side are multiples of it, if there is more than one tile.

  Returns:
    (starts, side) of the tiles.
  """
  if length <= largest:
    return [0], length
  count = -(-(length - overlap) // (largest - overlap))
  side = -(-(length + (count - 1) * overlap) // count)
  side = -(-side // step) * step
  return [min(i * (side - overlap), length - side) for i in range(count)], side


def ramps(length, starts, side, overlap):
  """Returns the weights, float32 [tiles, side], of the tiles of a length.

  They sum to 1 at each pixel. In an overlap the outer quarter has weight 0 and the middle half is a
  linear ramp.

  Args:
    length: that the tiles cover.
    starts: first pixels of the tiles.
    side: of the tiles.
    overlap: of neighbours.
  """
  position = np.arange(side) + 0.5
  weights = np.ones((len(starts), side))
  for row, start in zip(weights, starts, strict=True):
    if start > 0:
      row *= np.clip((position - overlap / 4) / (overlap / 2), 0, 1)
    if start + side < length:
      row *= np.clip((side - position - overlap / 4) / (overlap / 2), 0, 1)
  total = np.zeros(length)
  for row, start in zip(weights, starts, strict=True):
    total[start : start + side] += row
  return np.float32(
    [row / total[start : start + side] for row, start in zip(weights, starts, strict=True)]
  )


def render(run, image, *, largest, overlap, step):
  """Applies a function to an image tile by tile.

  Args:
    run: function of a tile [h, w, 3] and its origin (top, left) to an array of the tile's shape.
    image: [H, W, 3].
    largest: longest side of a tile.
    overlap: least overlap of neighbours.
    step: see tile_starts.

  Returns:
    float32 [H, W, 3].
  """
  height, width = image.shape[:2]
  (tops, high), (lefts, wide) = (tile_starts(n, largest, overlap, step) for n in (height, width))
  rows, columns = ramps(height, tops, high, overlap), ramps(width, lefts, wide, overlap)
  rendered = np.zeros(image.shape, np.float32)
  for top, row in zip(tops, rows, strict=True):
    for left, column in zip(lefts, columns, strict=True):
      tile = np.s_[top : top + high, left : left + wide]
      rendered[tile] += run(image[tile], (top, left)) * (row[:, None] * column)[..., None]
  return rendered


def cut(image, *, largest, overlap, step):
  """Returns the tiles [h, w, 3] of an image [H, W, 3] to which render applies its function."""
  (tops, high), (lefts, wide) = (tile_starts(n, largest, overlap, step) for n in image.shape[:2])
  return [image[top : top + high, left : left + wide] for top in tops for left in lefts]
