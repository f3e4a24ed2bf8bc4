"""Folders and .npz files as batches, and what is wrong with some."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import image_sets


def read(images, batch_size, rows=None):
  batches = list(images.batches(rows or range(images.count), batch_size))
  assert max(len(batch["image"]) for batch in batches) <= batch_size
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_a_folder_in_the_order_of_names(folders):
  images = image_sets.open_files(folders[0])
  found = read(images, 7)
  expected = [np.asarray(Image.open(path)) for path in sorted(folders[0].glob("*.png"))]
  np.testing.assert_array_equal(found["image"], np.stack(expected))
  np.testing.assert_array_equal(found["row"], np.arange(23))
  some = read(images, 7, range(5, 15))
  np.testing.assert_array_equal(some["image"], np.stack(expected[5:15]))


def test_fewer_of_a_folder_are_spread_over_it(folders):
  images = image_sets.open_files(folders[0], limit=4)
  assert images.count == 4 and images.indices.tolist() == [0, 5, 11, 17]


def test_crops_make_one_size(folders):
  Image.new("RGB", (40, 20), "red").save(folders[0] / "100.png")
  with pytest.raises(UserError, match=r"100.png has 20×40 pixels, and the images before it 16×16"):
    read(image_sets.open_files(folders[0]), 8)
  assert read(image_sets.open_files(folders[0], size=12), 8)["image"].shape == (24, 12, 12, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_a_batch_at_a_time(save, tmp_path, smooth_images):
  expected, labels = smooth_images(11, 16), np.arange(11) % 3
  save(tmp_path / "a.npz", expected, labels)
  images = image_sets.open_files(tmp_path / "a.npz")
  assert (images.count, images.size, images.labelled) == (11, (16, 16), True)
  found = read(images, 4)
  np.testing.assert_array_equal(found["image"], expected)
  np.testing.assert_array_equal(found["label"], labels)
  some = read(images, 4, range(6, 11))
  np.testing.assert_array_equal(some["image"], expected[6:])
  np.testing.assert_array_equal(some["label"], labels[6:])
  assert image_sets.open_files(tmp_path / "a.npz", limit=5).count == 5


@pytest.mark.parametrize(
  "arrays, words",
  [
    ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, r"arr_0 is float32 \[2, 8, 8, 3\]; give uint8"),
    ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8)}, r"arr_0 is uint8 \[2, 8, 8, 1\]"),
    ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "has no arr_0"),
  ],
)
def test_another_npz(arrays, words, tmp_path):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(UserError, match=words):
    image_sets.open_files(tmp_path / "a.npz")


def test_no_npz_at_all_and_half_of_one(tmp_path, smooth_images):
  path = tmp_path / "a.npz"
  path.write_bytes(b"nothing")
  with pytest.raises(UserError, match="a.npz is no whole .npz"):
    image_sets.open_files(path)
  np.savez(path, smooth_images(4, 16))
  data = bytearray(path.read_bytes())
  data[1000] ^= 255
  path.write_bytes(data)
  with pytest.raises(UserError, match="a.npz: arr_0 is damaged"):
    read(image_sets.open_files(path), 4)


@pytest.mark.parametrize("header", [b"{'shape': (1, \n", b"{(((\n", b"\xff\n", b"{'shape'\n"])
def test_damaged_headers(header, tmp_path):
  start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
    archive.writestr("arr_0.npy", start + header)
  with pytest.raises(UserError, match="a.npz"):
    image_sets.open_files(tmp_path / "a.npz")


def test_missing_and_empty_folders(tmp_path):
  with pytest.raises(UserError, match="nowhere is no folder of images and no .npz file"):
    image_sets.open_files(tmp_path / "nowhere")
  with pytest.raises(UserError, match="holds no image"):
    image_sets.open_files(tmp_path)
