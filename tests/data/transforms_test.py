"""Every odd kind of image comes out as upright RGB; crops, and the device's transforms."""

import io

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imgtx_jax.data import transforms


def smooth_image(height=40, width=60, seed=0):
  """A smooth colour image uint8 [height, width, 3]: lossy codecs hardly change it."""
  coarse = np.random.default_rng(seed).integers(30, 220, (3, 4, 3), dtype=np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(picture, kind, **options):
  if isinstance(picture, np.ndarray):
    picture = Image.fromarray(picture)
  buffer = io.BytesIO()
  picture.save(buffer, kind, **options)
  return buffer.getvalue()


def assert_close(decoded, expected, tolerance):
  assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
  assert np.abs(decoded.astype(int) - expected).mean() <= tolerance


@pytest.mark.parametrize(
  "kind, options, tolerance",
  [
    ("JPEG", {"quality": 95}, 3),
    ("JPEG", {"quality": 95, "progressive": True}, 3),
    ("PNG", {}, 0),
    ("WEBP", {"quality": 95}, 3),
    ("WEBP", {"lossless": True}, 0),
  ],
)
def test_decode_rgb(kind, options, tolerance):
  image = smooth_image()
  assert_close(transforms.decode(encode(image, kind, **options)), image, tolerance)


@pytest.mark.parametrize("kind, tolerance", [("JPEG", 2), ("PNG", 0), ("WEBP", 3)])
def test_decode_grayscale(kind, tolerance):
  gray = smooth_image()[..., 0]
  assert_close(transforms.decode(encode(gray, kind)), np.stack([gray] * 3, -1), tolerance)


def test_decode_16_bit_grayscale():
  gray = smooth_image()[..., 0]
  data = encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
  assert_close(transforms.decode(data), np.stack([gray] * 3, -1), 1)
  assert_close(transforms._decode_pillow(data), np.stack([gray] * 3, -1), 1)


def test_decode_cmyk():
  image = smooth_image()
  data = encode(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95)
  assert Image.open(io.BytesIO(data)).mode == "CMYK"
  assert_close(transforms.decode(data), image, 4)


def test_decode_palette():
  image = np.where(smooth_image()[..., :1] > 120, [[[250, 10, 60]]], [[[0, 90, 200]]])
  data = encode(Image.fromarray(image.astype(np.uint8)).quantize(4), "PNG")
  assert Image.open(io.BytesIO(data)).mode == "P"
  assert_close(transforms.decode(data), image, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_decode_alpha_lies_on_white(kind):
  image = smooth_image()
  alpha = np.full(image.shape[:2], 255, np.uint8)
  alpha[:, :20], alpha[:, 20:40] = 0, 128
  expected = np.round(255 + (image.astype(float) - 255) * alpha[..., None] / 255)
  data = encode(np.dstack([image, alpha]), kind, lossless=True)
  assert_close(transforms.decode(data), expected, 1)


def test_decode_gray_alpha_and_transparent_palette_lie_on_white():
  gray = np.full((8, 8), 100, np.uint8)
  alpha = np.zeros((8, 8), np.uint8)
  assert (transforms.decode(encode(np.dstack([gray, alpha]), "PNG")) == 255).all()
  palette = Image.fromarray(gray).convert("P")
  data = encode(palette, "PNG", transparency=palette.getpixel((0, 0)))
  assert (transforms.decode(data) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation, turned", [(3, 2), (6, 3), (8, 1)])
def test_decode_applies_exif_orientation(kind, orientation, turned):
  image = smooth_image()
  exif = Image.Exif()
  exif[0x0112] = orientation
  decoded = transforms.decode(encode(image, kind, exif=exif, quality=95))
  assert_close(decoded, np.rot90(image, turned), 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99])
def test_decode_refuses_truncated_images(kind, kept):
  data = encode(smooth_image(200, 300), kind)
  with pytest.raises(transforms.CorruptImageError):
    transforms.decode(data[: int(kept * len(data))])


def test_decode_refuses_a_truncated_jpeg_whatever_opencv_makes_of_it(monkeypatch):
  image = smooth_image()
  monkeypatch.setattr(transforms, "_decode_opencv", lambda data: image)  # as older versions do
  data = encode(image, "JPEG")
  assert transforms.decode(data) is image
  assert transforms.decode(data + b"\0" * 8) is image
  with pytest.raises(transforms.CorruptImageError):
    transforms.decode(data[:-200])


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_decode_refuses_other_bytes(data):
  with pytest.raises(transforms.CorruptImageError):
    transforms.decode(data)


def test_decode_accepts_bytes_after_the_end():
  image = smooth_image()
  data = encode(image, "JPEG", quality=95) + b"camera maker's trailer" * 9
  assert_close(transforms.decode(data), image, 3)


def test_center_crop_takes_the_middle_and_averages():
  image = np.zeros((8, 20, 3), np.uint8)
  image[:, 6:14] = np.arange(8, dtype=np.uint8)[None, :, None] * 20
  expected = np.broadcast_to(np.array([10, 50, 90, 130])[None, :, None], (4, 4, 3))
  np.testing.assert_array_equal(transforms.center_crop(image, 4), expected)
  np.testing.assert_array_equal(transforms.center_crop(image, 8), image[:, 6:14])
  assert transforms.center_crop(image.swapaxes(0, 1), 4).shape == (4, 4, 3)
  assert transforms.center_crop(image, 16).shape == (16, 16, 3)  # grows


@pytest.mark.parametrize("side", [72, 96, 120, 168, 300])
def test_shrinking_is_antialiased(side):
  """Pillow's antialiasing triangle is met much better than by linear interpolation, which lets
  noise through."""
  image = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
  expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR), np.float32)
  ours = np.float32(transforms.center_crop(image, 64))
  linear = np.float32(cv2.resize(image, (64, 64), interpolation=cv2.INTER_LINEAR))
  assert abs(ours.mean() - image.mean()) < 1
  assert abs(ours.std() / expected.std() - 1) < 0.25 < linear.std() / expected.std() - 1 + 0.25
  assert np.std(ours - expected) < (1.01 if side < 90 else 0.75) * np.std(linear - expected)


def test_random_resized_crop_stays_inside_and_respects_min_scale():
  rows, columns = np.mgrid[0:100, 0:150].astype(np.uint8)
  image = np.stack([rows, columns, rows], -1)
  rng = np.random.default_rng(0)
  sides, tops = [], []
  for _ in range(300):
    crop = transforms.random_resized_crop(image, 100, rng, 0.25)
    assert crop.shape == (100, 100, 3)
    low, high = crop[..., 0].min(), crop[..., 0].max()
    sides.append(int(high) - int(low) + 1)
    tops.append(low)
    assert abs((int(crop[..., 1].max()) - int(crop[..., 1].min()) + 1) - sides[-1]) <= 2  # square
  assert 49 <= min(sides) < 60 and 95 < max(sides) <= 100
  assert min(tops) == 0 and max(tops) > 30
  np.testing.assert_allclose(np.mean(np.square(sides)) / 1e4, 0.625, atol=0.04)  # uniform in area


def test_random_resized_crop_respects_max_scale():
  ramp = np.arange(100, dtype=np.uint8)[:, None, None].repeat(100, 1).repeat(3, 2)
  rng = np.random.default_rng(0)
  crops = [transforms.random_resized_crop(ramp, 100, rng, 0.25, 0.36) for _ in range(100)]
  spans = [int(crop.max()) - int(crop.min()) + 1 for crop in crops]
  assert 49 <= min(spans) <= 52 and 58 <= max(spans) <= 61


def test_random_resized_crop_of_whole_square_is_the_image():
  image = smooth_image(32, 32)
  crop = transforms.random_resized_crop(image, 32, np.random.default_rng(0), 1.0)
  np.testing.assert_array_equal(crop, image)


def test_normalize_and_denormalize_are_inverse():
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
  x = transforms.normalize(images)
  assert isinstance(x, jax.Array) and x.dtype == jnp.float32
  assert float(x.min()) == -1 and float(x.max()) == 1
  for back in (transforms.denormalize(x), transforms.denormalize(np.asarray(x))):
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, images)
  assert isinstance(transforms.denormalize(x), jax.Array)
  assert isinstance(transforms.denormalize(np.asarray(x)), np.ndarray)
  np.testing.assert_array_equal(transforms.denormalize(np.array([-3.0, 3.0])), [0, 255])


def test_random_flip_depends_on_each_key_alone():
  images = np.random.default_rng(0).random((64, 4, 5, 3), np.float32)
  keys = jax.random.split(jax.random.key(0), 64)
  flipped = np.asarray(jax.jit(transforms.random_flip)(images, keys))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  kept = (flipped == images).all((1, 2, 3))
  assert (mirrored ^ kept).all() and 16 < mirrored.sum() < 48
  alone = transforms.random_flip(images[10:20], keys[10:20])
  np.testing.assert_array_equal(flipped[10:20], alone)


def test_random_colors_turn_hues_of_a_share_and_keep_grey_grey():
  draw = np.random.default_rng(0)
  images = draw.uniform(-0.3, 0.3, (64, 4, 4, 3)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 64)
  changed = np.asarray(jax.jit(transforms.random_colors)(images, keys, 0.5))
  kept = (changed == images).all((1, 2, 3))
  assert 16 < kept.sum() < 48 and np.abs(changed).max() <= 1
  assert len({tuple(np.argsort(x[0, 0])) for x in changed[~kept]}) > 3
  grey = np.repeat(images[..., :1], 3, axis=-1)
  still = np.asarray(transforms.random_colors(grey, keys, 1.0))
  np.testing.assert_allclose(still, np.repeat(still[..., :1], 3, axis=-1), atol=1e-5)
  part = transforms.random_colors(images[9:11], keys[9:11], 0.5)
  np.testing.assert_allclose(part, changed[9:11], atol=1e-6)


def test_random_variations_move_scale_and_turn_a_little():
  image = np.ones((32, 32, 3), np.float32)
  image[12:20, 12:20] = (-0.5, 0.3, 0.1)  # a square on white
  images = np.repeat(image[None], 64, axis=0)
  keys = jax.random.split(jax.random.key(0), 64)
  vary = jax.jit(transforms.random_variations)
  np.testing.assert_array_equal(vary(images, keys, 0.0), images)
  changed = np.asarray(vary(images, keys, 0.5))
  kept = (changed == images).all((1, 2, 3))
  assert 16 < kept.sum() < 48 and np.abs(changed).max() <= 1
  np.testing.assert_allclose(vary(images[9:11], keys[9:11], 0.5), changed[9:11], atol=1e-6)
  every = np.asarray(vary(images, keys, 1.0))
  np.testing.assert_allclose(every[:, 0], 1.0, atol=1e-5)  # white comes into view
  weight = 1.0 - every.mean(-1)  # of the square
  places = np.arange(32) - 15.5
  moved = [(weight * axis).sum((1, 2)) / weight.sum((1, 2)) for axis in (places, places[:, None])]
  most = 32 * transforms.MAX_SHIFT
  for shift in moved:
    assert np.abs(shift).max() <= most + 1e-3 and shift.min() < -most / 2 and shift.max() > most / 2
  area = weight.sum((1, 2)) / (1.0 - image.mean(-1)).sum()
  least, largest = (1 - transforms.MAX_SCALING) ** 2, (1 + transforms.MAX_SCALING) ** 2
  assert least - 0.02 < area.min() < 0.92 and 1.08 < area.max() < largest + 0.02
  assert len({tuple(x.round(2)) for x in every[:, 15, 15]}) > 16  # hues
