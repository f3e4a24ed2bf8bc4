"""Rendering an image in overlapping tiles, blended without seams.

Each tile ends in a margin that is not used, where a network lacks half of its surroundings, before
a linear ramp. Tiles start at multiples of `step`, so that networks that cut the image into patches
and windows cut the tiles at the same places: away from a tile's border they see the same.
"""

import numpy as np


def plan(length, largest, overlap, step):
  """(starts, side) of tiles that cover a length, neighbours sharing `overlap` or more.

  All are multiples of step, as largest (over overlap) must be. As few tiles as can be, of about
  equal sides: 1,100 pixels are not one tile of 1,024 and a rest.
  """
  if length <= largest:
    return [0], length
  count = -(-(length - overlap) // (largest - overlap))
  side = -(-(length + (count - 1) * overlap) // count)
  side = -(-side // step) * step
  return [min(i * (side - overlap), length - side) for i in range(count)], side


def ramps(length, starts, side, overlap):
  """Weights [tiles, side], float32, of the tiles of a length; they sum to 1 at every pixel.

  Of an overlap the outer quarter has weight 0 and the middle half a linear ramp.
  """
  place = np.arange(side) + 0.5
  weights = np.ones((len(starts), side))
  for row, start in zip(weights, starts, strict=True):
    if start > 0:
      row *= np.clip((place - overlap / 4) / (overlap / 2), 0, 1)
    if start + side < length:
      row *= np.clip((side - place - overlap / 4) / (overlap / 2), 0, 1)
  total = np.zeros(length)
  for row, start in zip(weights, starts, strict=True):
    total[start : start + side] += row
  parts = [row / total[at : at + side] for row, at in zip(weights, starts, strict=True)]
  return np.float32(parts)


def render(run, image, *, largest, overlap, step):
  """run over an image [H, W, 3], a tile at a time; float32 [H, W, 3].

  run takes a tile [h, w, 3] and where it begins, (top, left), to an array of its shape. largest is
  the longest side of a tile.
  """
  height, width = image.shape[:2]
  (tops, high), (lefts, wide) = (plan(n, largest, overlap, step) for n in (height, width))
  rows, columns = ramps(height, tops, high, overlap), ramps(width, lefts, wide, overlap)
  found = np.zeros(image.shape, np.float32)
  for top, row in zip(tops, rows, strict=True):
    for left, column in zip(lefts, columns, strict=True):
      place = np.s_[top : top + high, left : left + wide]
      found[place] += run(image[place], (top, left)) * (row[:, None] * column)[..., None]
  return found


def cut(image, *, largest, overlap, step):
  """The tiles [h, w, 3] of an image [H, W, 3] that render runs over."""
  (tops, high), (lefts, wide) = (plan(n, largest, overlap, step) for n in image.shape[:2])
  return [image[top : top + high, left : left + wide] for top in tops for left in lefts]
