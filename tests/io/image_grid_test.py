import numpy as np
import pytest
from PIL import Image

from imgtx_jax.io import image_grid


def test_grid_places_images_row_by_row(tmp_path):
  images = np.stack([np.full((4, 6, 3), value) for value in (-1.0, 0.0, 1.0)])
  image_grid.save_grid(images, tmp_path / "deep" / "grid.png", columns=2, scale=2)
  grid = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
  assert grid.shape == (2 + 2 * (8 + 2), 2 + 2 * (12 + 2), 3)
  assert (grid[2:10, 2:14] == 0).all()
  assert (grid[2:10, 16:28] == 128).all()
  assert (grid[:2] == 255).all() and (grid[:, 14:16] == 255).all()
  assert [path.name for path in (tmp_path / "deep").iterdir()] == ["grid.png"]


def test_grid_captions_for_images_and_for_rows(tmp_path):
  images = np.tile(np.uint8([10, 200, 30]), (4, 16, 16, 1))
  sizes = []
  for captions in (None, ["a", "b", "c", "a long caption"], ["original", "reconstruction"]):
    image_grid.save_grid(images, tmp_path / "grid.png", columns=2, captions=captions)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    sizes.append(grid.shape[:2])
    assert (grid == images[0, 0, 0]).all(axis=2).sum() == 4 * 16 * 16
  assert sizes[1][0] > sizes[0][0] and sizes[1][1] == sizes[0][1]
  assert sizes[2][0] == sizes[0][0] and sizes[2][1] > sizes[0][1]
  with pytest.raises(ValueError, match="give 4 or 2"):
    image_grid.save_grid(images, tmp_path / "grid.png", columns=2, captions=["one"])
