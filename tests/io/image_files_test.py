"""Image files: modes, orientation, alpha, profile; what is refused, in one line."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files
from imgtx_jax.io.image_files import Picture


@pytest.fixture
def rgb(smooth_images):
  return smooth_images(1, 32)[0][:24]


def test_png_and_webp_keep_every_bit(tmp_path, rgb):
  alpha = np.arange(24 * 32).reshape(24, 32).astype(np.uint8)
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  for name in ("a.png", "b.webp"):
    for given in (Picture(rgb), Picture(rgb, alpha, profile)):
      image_files.write(tmp_path / "new" / name, given)
      found = image_files.read(tmp_path / "new" / name)
      np.testing.assert_array_equal(found.rgb, given.rgb)
      np.testing.assert_array_equal(found.alpha, given.alpha)
      assert found.profile == given.profile
  assert found.size == "32×24"


def test_jpeg_has_no_alpha(tmp_path, rgb):
  image_files.write(tmp_path / "a.jpg", Picture(rgb))
  assert np.abs(image_files.read(tmp_path / "a.jpg").rgb.astype(int) - rgb).mean() < 3
  with pytest.raises(UserError, match=r"b.jpg cannot keep the content's alpha channel"):
    image_files.write(tmp_path / "b.jpg", Picture(rgb, rgb[..., 0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, rgb, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
  turned = {
    1: rgb,
    2: rgb[:, ::-1],
    3: rgb[::-1, ::-1],
    4: rgb[::-1],
    5: rgb.swapaxes(0, 1),
    6: np.rot90(rgb, -1),
    7: rgb.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90(rgb),
  }
  np.testing.assert_array_equal(image_files.read(tmp_path / "a.png").rgb, turned[orientation])


def test_grey_palette_and_deep_images(tmp_path, rgb):
  grey = rgb[..., 0]
  cases = {
    "L": Image.fromarray(grey),
    "I;16": Image.fromarray(grey.astype(np.uint16) * 256 + 77),
    "1": Image.fromarray(grey > 99),
    "LA": Image.merge("LA", [Image.fromarray(grey), Image.fromarray(255 - grey)]),
  }
  for mode, image in cases.items():
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    found = image_files.read(tmp_path / "a.png")
    want = np.where(grey > 99, 255, 0) if mode == "1" else grey
    np.testing.assert_array_equal(found.rgb, np.repeat(want[..., None], 3, axis=2))
    assert (found.alpha is not None) == (mode == "LA")
  np.testing.assert_array_equal(found.alpha, 255 - grey)
  palette = Image.fromarray(rgb).quantize(16)
  palette.save(tmp_path / "p.png", transparency=3)
  found = image_files.read(tmp_path / "p.png")
  np.testing.assert_array_equal(found.rgb, np.asarray(palette.convert("RGB")))
  np.testing.assert_array_equal(found.alpha == 0, np.asarray(palette) == 3)
  Image.fromarray(rgb).convert("CMYK").save(tmp_path / "c.jpg", quality=98)
  assert np.abs(image_files.read(tmp_path / "c.jpg").rgb.astype(int) - rgb).mean() < 4


def test_on_white(rgb):
  assert Picture(rgb).on_white() is rgb
  half = Picture(rgb, np.full(rgb.shape[:2], 51, np.uint8)).on_white()
  assert np.abs(half - (0.2 * rgb + 0.8 * 255)).max() <= 0.51
  assert (Picture(rgb, np.zeros(rgb.shape[:2], np.uint8)).on_white() == 255).all()


def test_masks(tmp_path):
  values = np.tile(np.uint8([0, 51, 255] * 8), (24, 1))
  Image.fromarray(values).save(tmp_path / "m.png")
  np.testing.assert_allclose(image_files.read_mask(tmp_path / "m.png"), values / 255, rtol=1e-6)
  image = Image.new("RGBA", (24, 24), (255, 255, 255, 0))
  image.save(tmp_path / "m.png")
  assert (image_files.read_mask(tmp_path / "m.png") == 0).all()


def huge_png(width, height):
  """The start of a PNG of any size, which is all that is read of one too large."""
  data = io.BytesIO()
  Image.new("L", (16, 16)).save(data, "png")
  raw = bytearray(data.getvalue())
  import zlib

  raw[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
  raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
  return bytes(raw)


def test_what_is_refused(tmp_path, rgb):
  image_files.write(tmp_path / "whole.png", Picture(rgb))
  Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
  files = {
    "long.png": huge_png(20_000, 40),
    "many.png": huge_png(12_000, 12_000),
    "bomb.png": huge_png(20_000, 20_000),
    "text.png": b"no image at all",
    "cut.png": (tmp_path / "whole.png").read_bytes()[:200],
    "empty.png": b"",
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  for name, message in {
    "one.png": "1×1 pixels: both sides must be at least 16; enlarge it",
    "long.png": "20000×40 pixels: the limit is 16384 a side",
    "many.png": "12000×12000 pixels: the limit is",
    "bomb.png": "far too many pixels: the limit is",
    "text.png": "is no whole image .not a known format.; give JPEG",
    "cut.png": "is no whole image",
    "empty.png": "is no whole image",
    "none.png": "none.png cannot be read .No such file or directory.; give image files",
    "": "cannot be read .Is a directory.",
  }.items():
    with pytest.raises(UserError, match=message) as caught:
      image_files.read(tmp_path / name)
    assert "\n" not in str(caught.value)
  for name in ("a.gif", "a", ".png"):
    with pytest.raises(UserError, match="is no name of an image file"):
      image_files.check_name(tmp_path / name)


def test_scaled_shapes():
  assert image_files.scaled_shape(100, 201, 50) == (50, 101)
  assert image_files.scaled_shape(30, 16, 32) == (60, 32)
  with pytest.raises(UserError, match="--size=1000 makes 20000×1000 pixels of it: the limit is"):
    image_files.scaled_shape(16, 320, 1000)
