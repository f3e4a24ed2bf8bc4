"""Images from bytes to the network's input: decoded and cropped on the host, then on the device.

Host functions take and return uint8 RGB arrays [H, W, 3] (numpy, OpenCV, Pillow) and run in the
pipeline's threads; device functions take batches [B, H, W, 3].
"""

import io
import math
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from imgtx_jax.errors import UserError

# The pipeline has threads of its own: OpenCV's would only fight with them. Its warnings about
# damaged files would come beside ours, which name the file.
cv2.setNumThreads(0)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class CorruptImageError(ValueError):
  """Bytes that are not a whole image."""


def decode(data):
  """Encoded bytes (JPEG, PNG, WebP) to a uint8 RGB image [H, W, 3].

  Grayscale, palette, CMYK and 16-bit images become RGB, transparent pixels lie on white, and the
  EXIF orientation is applied. Raises CorruptImageError for anything else, truncated files included.
  """
  image = _decode_opencv(data) if _opencv_suffices(data) else None
  return _decode_pillow(data) if image is None else image


def _opencv_suffices(data):
  """Whether OpenCV, twice as fast as Pillow, decodes these bytes without error.

  It drops transparency, reads CMYK by a cruder formula and, depending on its version, fills the
  missing part of a truncated JPEG with gray; Pillow gets these right or raises.
  """
  if data[:2] == b"\xff\xd8":
    ends = data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")
    return ends and _jpeg_components(data) in (1, 3)
  if data[:8] == b"\x89PNG\r\n\x1a\n":
    opaque = data[25:26] in (b"\0", b"\2", b"\3") and data.find(b"tRNS", 33, data.find(b"IDAT")) < 0
    return opaque and b"IEND" in data[-64:]
  return data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 "


def _jpeg_components(data):
  """Number of colour components in a JPEG's frame header; 0 when there is none."""
  position = 2
  while position + 10 <= len(data) and data[position] == 0xFF:
    marker = data[position + 1]
    if marker == 0xFF:  # a fill byte
      position += 1
      continue
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      return data[position + 9]
    position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
  return 0


def _decode_opencv(data):
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  except cv2.error:
    return None


def _decode_pillow(data):
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture = ImageOps.exif_transpose(picture)
      if picture.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
      if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
      return np.array(picture.convert("RGB"))
  except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
    raise CorruptImageError(str(error) or type(error).__name__) from error


def read_image(file, size):
  """An image file that a user named, as the networks take it: uint8 [size, size, 3], the centred
  square."""
  try:
    with open(file, "rb") as stream:
      image = decode(stream.read())
  except OSError as error:
    raise UserError(f"{file} cannot be read ({error.strerror}); give image files") from error
  except CorruptImageError as error:
    raise UserError(f"{file} is no whole image ({error}); give JPEG, PNG or WebP files") from error
  return center_crop(image, size)


def _resize(image, size):
  """A square image at size x size: antialiased when it shrinks, cubic when it grows."""
  side = len(image)
  if side < size:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
  # OpenCV's area average takes longer than decoding, save for halves. Those come first, then what
  # is left of the scale: a blur and linear interpolation, together as wide as the triangle that
  # antialiases in Pillow (the variance of its kernel, scale² / 6, is that of both).
  while len(image) >= 2 * size:
    half = len(image) // 2
    even = image[: 2 * half, : 2 * half]
    image = cv2.resize(even, (half, half), interpolation=cv2.INTER_AREA)
  if len(image) == size:
    return image
  beside = ((len(image) / size) ** 2 - 1) / 12  # the blur's weights: beside, 1 - 2 beside, beside
  if beside > 1 / 256:  # OpenCV's have 8 bits
    sigma = (-2 * math.log(beside / (1 - 2 * beside))) ** -0.5
    image = cv2.GaussianBlur(image, (3, 3), sigma)
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def center_crop(image, size):
  """The largest centred square of an image [H, W, 3], at [size, size, 3]."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return _resize(image[top : top + side, left : left + side], size)


def random_resized_crop(image, size, rng, min_scale, max_scale=1.0):
  """A random square of an image [H, W, 3], at [size, size, 3].

  Its area is uniform between min_scale and max_scale of the largest square that fits; min_scale 1
  moves it along the longer side only. Always square: a generator would learn a stretched aspect
  ratio.
  """
  height, width = image.shape[:2]
  draw, down, right = rng.random(3)
  scale = min_scale + (max_scale - min_scale) * draw
  side = max(1, round(min(height, width) * scale**0.5))
  top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
  return _resize(image[top : top + side, left : left + side], size)


class CropPlan(NamedTuple):
  """Which crops [size, size] stand for an image: its square is resized to each of the sides, and a
  row of the table, int32 [C, 4], is the index of the side, top, left, and 1 for mirrored."""

  size: int
  sides: tuple[int, ...]
  table: np.ndarray

  @property
  def square_shape(self):
    """Of what `squares` returns."""
    return (len(self.sides), max(self.sides), max(self.sides), 3)


def plan_crops(size, kind, scales, flip):
  """The CropPlan with sides int(scale * size).

  kind "ten" takes the four corners and the centre of each square, "center" the centre, and flip
  adds their mirror images: ten-crop as in LlamaGen, arXiv:2406.06525. What would coincide is taken
  once.
  """
  sides = tuple(dict.fromkeys(int(scale * size + 1e-6) for scale in scales))
  table = []
  for index, side in enumerate(sides):
    end, middle = side - size, (side - size) // 2
    places = [(middle, middle)]
    if kind == "ten":
      places = [(0, 0), (0, end), (end, 0), (end, end), *places]
    table += [(index, *place, 0) for place in dict.fromkeys(places)]
  if flip:
    table += [(*row[:3], 1) for row in table]
  return CropPlan(size, sides, np.array(table, np.int32))


def squares(image, plan):
  """The largest centred square of an image [H, W, 3] at each of the plan's sides; uint8
  [sides, S, S, 3], S the largest of them, and zeros where a smaller one ends."""
  stacked = np.zeros(plan.square_shape, np.uint8)
  for square, side in zip(stacked, plan.sides, strict=True):
    square[:side, :side] = center_crop(image, side)
  return stacked


def take_crop(images, row, size):
  """One crop of a batch, on the device: squares [B, sides, S, S, 3] and a row of a CropPlan's table
  to [B, size, size, 3]."""
  index, top, left, mirrored = row
  shape = (len(images), 1, size, size, 3)
  crop = jax.lax.dynamic_slice(images, (0, index, top, left, 0), shape)[:, 0]
  # Not jnp.where, which mirrors all crops: 4 % of a small encoder's time on a CPU.
  return jax.lax.cond(mirrored > 0, lambda x: x[:, :, ::-1], lambda x: x, crop)


def normalize(images):
  """uint8 images to float32 in [-1, 1], same shape, on the device."""
  return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def denormalize(images):
  """Float images in [-1, 1] (clipped) to uint8, same shape; stays on the host or the device."""
  np_ = jnp if isinstance(images, jax.Array) else np
  scaled = np_.asarray(images, np_.float32) * 127.5 + 127.5
  return np_.clip(np_.round(scaled), 0, 255).astype(np_.uint8)


def random_colors(images, keys, share):
  """Turns the colours of a share of images [B, H, W, 3] in [-1, 1] about the grey axis, each by its
  own key [B], and changes their saturation, contrast and brightness; clipped."""
  return jax.vmap(lambda image, key: _recolor(image, key, share))(images, keys)


def _recolor(image, key, share):
  draw = jax.random.uniform(key, (5,))
  turn = 2.0 * jnp.pi * draw[1]
  # A rotation about (1, 1, 1): a circulant matrix whose rows sum to 1.
  row = (1.0 + 2.0 * jnp.cos(turn + 2.0 * jnp.pi / 3.0 * jnp.arange(3))) / 3.0
  matrix = jnp.stack([jnp.roll(row, i) for i in range(3)])
  grey = jnp.mean(image, axis=-1, keepdims=True)
  changed = grey + (image @ matrix - grey) * 1.5 * draw[2]
  mean = jnp.mean(changed)
  changed = mean + (changed - mean) * (0.6 + 0.8 * draw[3]) + 0.3 * (2.0 * draw[4] - 1.0)
  return jnp.where(draw[0] < share, jnp.clip(changed, -1.0, 1.0), image)


def random_flip(images, keys):
  """Mirrors each image [B, H, W, 3] left to right with probability 1/2, by its own key [B]."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
