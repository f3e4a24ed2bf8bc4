"""Image transforms: decoding and cropping on the host, normalisation and augmentation on devices.

Host functions take and return uint8 RGB arrays [H, W, 3] and run in the pipeline's threads. Device
functions take batches [B, H, W, 3].
"""

import math
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files

# OpenCV's threads would compete with the pipeline's. Its warnings about damaged files would
# duplicate ours, which name the file.
cv2.setNumThreads(0)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Of random_variations: fractions of the side, of the size and of the circle of hues.
MAX_SHIFT, MAX_SCALING, MAX_HUE = 1 / 16, 0.1, 0.05


class CorruptImageError(ValueError):
  """Raised for bytes that are not a whole image."""


def decode(data):
  """Decodes bytes of any format in image_files.SUFFIXES to a uint8 RGB image [H, W, 3].

  Grayscale, palette, CMYK, 16-bit and float images become RGB (see io/image_files.py). Transparent
  pixels are composed over white. The EXIF orientation is applied. Raises CorruptImageError for
  other and for truncated files.
  """
  image = _decode_opencv(data) if _opencv_suffices(data) else None
  return _decode_pillow(data) if image is None else image


def _opencv_suffices(data):
  """Returns whether OpenCV, twice as fast as Pillow, decodes these bytes correctly.

  It drops transparency, converts CMYK by a cruder formula, allocates whatever size a damaged header
  asks for and, depending on its version, fills the missing part of a truncated JPEG with gray.
  Pillow gets these right or raises.
  """
  if data[:2] == b"\xff\xd8":
    ends = data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")
    components, height, width = _jpeg_frame(data)
    return ends and components in (1, 3) and height * width <= image_files.MAX_PIXELS
  if data[:8] == b"\x89PNG\r\n\x1a\n":
    opaque = data[25:26] in (b"\0", b"\2", b"\3") and data.find(b"tRNS", 33, data.find(b"IDAT")) < 0
    pixels = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    return opaque and b"IEND" in data[-64:] and pixels <= image_files.MAX_PIXELS
  return data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 "  # 14 bits a side


def _jpeg_frame(data):
  """Returns (colour components, height, width) of a JPEG's frame header; zeros if there is none."""
  position = 2
  while position + 10 <= len(data) and data[position] == 0xFF:
    marker = data[position + 1]
    if marker == 0xFF:  # a fill byte
      position += 1
      continue
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
      return data[position + 9], int.from_bytes(height, "big"), int.from_bytes(width, "big")
    position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
  return 0, 0, 0


def _decode_opencv(data):
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  except cv2.error:
    return None


def _decode_pillow(data):
  try:
    with image_files.open_image(data) as picture:
      picture = image_files.upright(picture)
      if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
      return np.array(picture.convert("RGB"))
  except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
    raise CorruptImageError(str(error) or type(error).__name__) from error


def read_image(file, size):
  """Reads the centred square of an image file at [size, size, 3], uint8.

  Raises a UserError that names the file if it cannot be read.
  """
  try:
    with open(file, "rb") as stream:
      image = decode(stream.read())
  except OSError as error:
    raise UserError(f"{file} cannot be read ({error.strerror}); give image files") from error
  except CorruptImageError as error:
    raise UserError(
      f"{file} is no whole image ({error}); give JPEG, PNG, WebP or TIFF files"
    ) from error
  return center_crop(image, size)


def _resize(image, size):
  """Resizes a square image to [size, size, 3]: antialiased if it shrinks, cubic if it grows."""
  side = len(image)
  if side < size:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
  # OpenCV's area average takes longer than decoding, except for factors of two. Halve first, then
  # blur and interpolate linearly. The variance of these two kernels together, scale² / 6, is that
  # of the triangle kernel with which Pillow antialiases.
  while len(image) >= 2 * size:
    half = len(image) // 2
    even = image[: 2 * half, : 2 * half]
    image = cv2.resize(even, (half, half), interpolation=cv2.INTER_AREA)
  if len(image) == size:
    return image
  side_weight = ((len(image) / size) ** 2 - 1) / 12  # the blur's weights are s, 1 − 2s, s
  if side_weight > 1 / 256:  # OpenCV's weights have 8 bits
    sigma = (-2 * math.log(side_weight / (1 - 2 * side_weight))) ** -0.5
    image = cv2.GaussianBlur(image, (3, 3), sigma)
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def center_crop(image, size):
  """Crops the largest centred square of an image [H, W, 3] and resizes it to [size, size, 3]."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return _resize(image[top : top + side, left : left + side], size)


def random_resized_crop(image, size, rng, min_scale, max_scale=1.0):
  """Crops a random square of an image and resizes it to [size, size, 3].

  Crops are always square: a generator would learn stretched aspect ratios.

  Args:
    image: uint8 [H, W, 3].
    size: the side of the result.
    rng: a NumPy generator.
    min_scale, max_scale: the square's area is uniform between these fractions of the largest square
      that fits. With min_scale 1 only the position along the longer side is random.
  """
  height, width = image.shape[:2]
  draw, down, right = rng.random(3)
  scale = min_scale + (max_scale - min_scale) * draw
  side = max(1, round(min(height, width) * scale**0.5))
  top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
  return _resize(image[top : top + side, left : left + side], size)


class CropSet(NamedTuple):
  """A fixed list of crops [size, size, 3] of an image.

  sides: the image's centred square is resized to each of these. table: int32 [C, 4], per crop the
  index into sides, top, left, and 1 if mirrored.
  """

  size: int
  sides: tuple[int, ...]
  table: np.ndarray

  @property
  def square_shape(self):
    """Returns the shape of the array that resize_squares returns."""
    return (len(self.sides), max(self.sides), max(self.sides), 3)


def make_crop_set(size, kind, scales, flip):
  """Returns the CropSet with sides int(scale * size); equal crops are listed once.

  Args:
    size: the side of a crop.
    kind: "ten" for the four corners and the centre of each square (ten-crop as in LlamaGen,
      arXiv:2406.06525), "center" for the centre only.
    scales: sides of the squares, relative to size.
    flip: whether to add the mirror images.
  """
  sides = tuple(dict.fromkeys(int(scale * size + 1e-6) for scale in scales))
  table = []
  for index, side in enumerate(sides):
    end, middle = side - size, (side - size) // 2
    corners = [(middle, middle)]
    if kind == "ten":
      corners = [(0, 0), (0, end), (end, 0), (end, end), *corners]
    table += [(index, *corner, 0) for corner in dict.fromkeys(corners)]
  if flip:
    table += [(*row[:3], 1) for row in table]
  return CropSet(size, sides, np.array(table, np.int32))


def resize_squares(image, crop_set):
  """Resizes the largest centred square of an image [H, W, 3] to each side of a CropSet.

  Returns uint8 [sides, S, S, 3], where S is the largest side; smaller squares are padded by zeros
  below and to the right.
  """
  stacked = np.zeros(crop_set.square_shape, np.uint8)
  for square, side in zip(stacked, crop_set.sides, strict=True):
    square[:side, :side] = center_crop(image, side)
  return stacked


def take_crop(images, row, size):
  """Takes one crop [B, size, size, 3] of a batch on the device.

  Args:
    images: [B, sides, S, S, 3] from resize_squares.
    row: a row of CropSet.table.
    size: the side of the crop.
  """
  index, top, left, mirrored = row
  shape = (len(images), 1, size, size, 3)
  crop = jax.lax.dynamic_slice(images, (0, index, top, left, 0), shape)[:, 0]
  # jnp.where would mirror all crops, which takes 4 % of a small encoder's time on a CPU.
  return jax.lax.cond(mirrored > 0, lambda x: x[:, :, ::-1], lambda x: x, crop)


def normalize(images):
  """Converts uint8 images to float32 in [-1, 1] on the device."""
  return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def denormalize(images):
  """Clips float images to [-1, 1] and converts them to uint8, on the host or device they are on."""
  np_ = jnp if isinstance(images, jax.Array) else np
  scaled = np_.asarray(images, np_.float32) * 127.5 + 127.5
  return np_.clip(np_.round(scaled), 0, 255).astype(np_.uint8)


def random_colors(images, keys, prob):
  """Changes hue, saturation, contrast and brightness of random images.

  Args:
    images: [B, H, W, 3] in [-1, 1].
    keys: random keys [B].
    prob: probability that an image is changed.

  Returns:
    Images [B, H, W, 3], clipped to [-1, 1].
  """
  return jax.vmap(lambda image, key: _recolor(image, key, prob))(images, keys)


def _recolor(image, key, prob):
  """Changes the colours of one image [H, W, 3]; see random_colors."""
  draw = jax.random.uniform(key, (5,))
  grey = jnp.mean(image, axis=-1, keepdims=True)
  changed = grey + (_turn_hue(image, 2.0 * jnp.pi * draw[1]) - grey) * 1.5 * draw[2]
  mean = jnp.mean(changed)
  changed = mean + (changed - mean) * (0.6 + 0.8 * draw[3]) + 0.3 * (2.0 * draw[4] - 1.0)
  return jnp.where(draw[0] < prob, jnp.clip(changed, -1.0, 1.0), image)


def _turn_hue(image, angle):
  """Rotates the colours of an image [..., 3] about the axis of greys by an angle in radians."""
  # A rotation about (1, 1, 1): a circulant matrix whose rows sum to 1.
  row = (1.0 + 2.0 * jnp.cos(angle + 2.0 * jnp.pi / 3.0 * jnp.arange(3))) / 3.0
  matrix = jnp.stack([jnp.roll(row, i) for i in range(3)])
  return jnp.matmul(image, matrix, precision="highest")


def random_variations(images, keys, prob):
  """Shifts, scales and changes the hue of random images, a little and smoothly.

  Shifts are within MAX_SHIFT of the side each way, scales within 1 ± MAX_SCALING, and hues within
  MAX_HUE turns. What comes into view repeats the image's edge.

  Args:
    images: [B, H, W, 3] in [-1, 1].
    keys: random keys [B].
    prob: probability that an image is changed.

  Returns:
    Images [B, H, W, 3], clipped to [-1, 1].
  """
  return jax.vmap(lambda image, key: _vary(image, key, prob))(images, keys)


def _vary(image, key, prob):
  """Shifts, scales and changes the hue of one image [H, W, 3]; see random_variations."""
  draw = jax.random.uniform(key, (5,), minval=-1.0)
  scale = 1.0 + MAX_SCALING * draw[0]
  rows, columns = (
    _resampling(side, scale, MAX_SHIFT * shift)
    for side, shift in zip(image.shape, draw[1:3], strict=False)
  )
  changed = jnp.einsum("hy,wx,yxc->hwc", rows, columns, image, precision="highest")
  changed = _turn_hue(changed, 2.0 * jnp.pi * MAX_HUE * draw[3])
  return jnp.where(jnp.abs(draw[4]) < prob, jnp.clip(changed, -1.0, 1.0), image)


def _resampling(side, scale, shift):
  """Returns the matrix [side, side] that scales a line of pixels about its middle and shifts it by
  a fraction of its length, with linear interpolation."""
  middle = (side - 1) / 2.0
  source = (jnp.arange(side) - middle - shift * side) / scale + middle
  source = jnp.clip(source, 0, side - 1)[:, None]
  return jnp.maximum(0.0, 1.0 - jnp.abs(source - jnp.arange(side)))


def random_flip(images, keys):
  """Mirrors each image [B, H, W, 3] left to right with probability 1/2; keys are [B]."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
