"""Tiles cover, start at steps, blend without seams, and equal the whole for local functions."""

import cv2
import numpy as np
import pytest

from imgtx_jax.style_transfer import tiling


@pytest.mark.parametrize("length", [64, 512, 576, 1088, 1100 // 64 * 64, 4096, 16384])
@pytest.mark.parametrize("largest, overlap", [(512, 128), (1024, 128), (1024, 256)])
def test_tiles_cover_every_length(length, largest, overlap):
  starts, side = tiling.tile_starts(length, largest, overlap, 64)
  assert side <= max(largest, 64) and side % 64 == 0 and all(s % 64 == 0 for s in starts)
  assert starts[0] == 0 and starts[-1] + side == length
  assert all(a < b <= a + side - overlap for a, b in zip(starts[:-1], starts[1:], strict=True))
  assert len(starts) == max(1, -(-(length - overlap) // (largest - overlap)))
  weights = tiling.ramps(length, starts, side, overlap)
  total, singly = np.zeros(length), np.zeros(length)
  for row, start in zip(weights, starts, strict=True):
    total[start : start + side] += row
    singly[start : start + side] += 1
  np.testing.assert_allclose(total, 1, atol=1e-6)
  assert weights.min() >= 0
  for row, start in zip(weights, starts, strict=True):
    assert (row[singly[start : start + side] == 1] == 1).all()
    # The margins are not used, and nothing jumps.
    assert start == 0 or (row[: overlap // 4] == 0).all()
    assert start + side == length or (row[-overlap // 4 :] == 0).all()
    assert np.abs(np.diff(row)).max(initial=0) < 4 / overlap


def test_a_local_function_is_the_same_in_tiles(smooth_images):
  image = smooth_images(1, 320)[0][:, :256].astype(np.float32)
  seen = []

  def run(tile, origin):
    seen.append(tile.shape)
    top, left = origin
    np.testing.assert_array_equal(tile, image[top:, left:][: len(tile), : tile.shape[1]])
    return cv2.blur(tile, (9, 9))

  found = tiling.render(run, image, largest=128, overlap=32, step=16)
  assert len(seen) == 3 * 3 and max(max(shape) for shape in seen) <= 128
  # 4 pixels far is less than the margin of 8 that is not used.
  np.testing.assert_allclose(found, cv2.blur(image, (9, 9)), atol=1e-3)


def test_tiles_that_disagree_meet_in_a_ramp():
  count = iter(range(9))
  image = np.zeros((128, 320, 3), np.float32)
  found = tiling.render(lambda tile, _: tile + next(count), image, largest=128, overlap=64, step=16)
  row = found[0, :, 0]
  assert row[0] == 0 and row[-1] == found.max() == 3
  assert 0 <= np.diff(row).min() and np.diff(row).max() <= 1 / 32 + 1e-6
  assert (found == row[None, :, None]).all()


def test_cut_gives_the_tiles_that_are_rendered():
  image = np.random.default_rng(0).standard_normal((200, 120, 3)).astype(np.float32)
  sides = dict(largest=96, overlap=32, step=16)
  rendered = []

  def run(tile, origin):
    rendered.append(tile)
    return tile

  tiling.render(run, image, **sides)
  found = tiling.cut(image, **sides)
  assert len(found) == len(rendered) > 4
  for ours, theirs in zip(found, rendered, strict=True):
    np.testing.assert_array_equal(ours, theirs)
