"""Reads and writes users' image files with their size, orientation, alpha and colour profile.

It reads what Pillow reads, and TIFFs of 16-bit and float colours. Colour, grey, palette and CMYK
images become 8-bit RGB, rotated by their EXIF orientation. RGB values and the colour profile are
kept, so that unchanged pixels stay equal to the bit. Only the first frame or page is read. Float
values must be in 0 … 1, or in 0 … 255 if one is above 1. 32-bit integers must be in 0 … 255, or in
0 … 65535 if one is above 255.
"""

import io
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import write_atomically

# How the names of the images end that are looked for in folders: all kinds that can be decoded.
SUFFIXES = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif"),
  *(".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
  *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".ico", ".pcx", ".psd", ".qoi", ".sgi", ".dds"),
)
MIN_SIDE, MAX_SIDE = 16, 16_384
MAX_PIXELS = 2**26  # 67 million: a float32 copy takes 0.8 GB
# Lossless where the format can be, else of high quality.
_FORMATS = {
  ".png": dict(format="png"),
  ".jpg": dict(format="jpeg", quality=95, subsampling=0),
  ".jpeg": dict(format="jpeg", quality=95, subsampling=0),
  ".webp": dict(format="webp", lossless=True, exact=True),
}
_WITHOUT_ALPHA = (".jpg", ".jpeg")


class Picture(NamedTuple):
  """The contents of an image file.

  rgb: uint8 [H, W, 3]. alpha: uint8 [H, W], or None. profile: the ICC profile of rgb, or None.
  """

  rgb: np.ndarray
  alpha: np.ndarray | None = None
  profile: bytes | None = None

  @property
  def size(self):
    """Returns the size as text, "W×H"."""
    return "×".join(map(str, self.rgb.shape[1::-1]))

  def on_white(self):
    """Returns the image composed over white, uint8 [H, W, 3]."""
    if self.alpha is None:
      return self.rgb
    alpha = self.alpha[..., None] / np.float32(255)
    return np.rint(self.rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def read(file):
  """Reads the Picture in a file.

  Raises a UserError of one line if the file is missing, no whole image, too small or too large.
  """
  try:
    data = Path(file).read_bytes()
  except OSError as error:
    raise UserError(f"{file} cannot be read ({error.strerror}); give image files") from error
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size raises instead
      with open_image(data) as image:
        _check_size(file, *image.size)
        return _read(image)
  except UserError:
    raise
  except Image.DecompressionBombError as error:
    raise UserError(_too_large(f"{file} has far too many pixels")) from error
  except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
    reason = "not a known format" if isinstance(error, UnidentifiedImageError) else error
    raise UserError(
      f"{file} is no whole image ({reason}); give JPEG, PNG, WebP or TIFF files"
    ) from error


def _check_size(file, width, height):
  if min(width, height) < MIN_SIDE:
    raise UserError(
      f"{file} is {width}×{height} pixels: both sides must be at least {MIN_SIDE}; enlarge it"
    )
  if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
    raise UserError(_too_large(f"{file} is {width}×{height} pixels"))


def _too_large(start):
  return (
    f"{start}: the limit is {MAX_SIDE} a side and {MAX_PIXELS} in all; make it smaller, or cut it"
  )


def open_image(data):
  """Opens encoded bytes as a Pillow image; pixels are decoded later if Pillow knows the format."""
  try:
    return Image.open(io.BytesIO(data))
  except UnidentifiedImageError:
    if data[:2] not in (b"II", b"MM"):
      raise
    # A TIFF of 16-bit or float colours, which Pillow has no mode for.
    if _tiff_pixels(data) > MAX_PIXELS:
      raise
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.shape[2:] not in ((), (3,), (4,)):
      raise
    if values.ndim == 3:
      values = values[..., (2, 1, 0, 3)[: values.shape[2]]]  # OpenCV's order is BGR
    return Image.fromarray(to_bytes(values))


def _tiff_pixels(data):
  """Returns the number of pixels in a TIFF's header; 0 if it is damaged."""
  try:
    header = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(header.next)
    header.load(file)
    return int(header[TiffImagePlugin.IMAGEWIDTH]) * int(header[TiffImagePlugin.IMAGELENGTH])
  except Exception:  # Pillow's reader raises many types on damaged bytes
    return 0


def upright(image):
  """Rotates a Pillow image by its EXIF orientation and converts it to 8 bits per sample."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I") or image.mode == "F":  # which convert() would clip at 255
    image = Image.fromarray(to_bytes(np.asarray(image)))
  return image


def to_bytes(values):
  """Converts samples of any type to uint8 by the module's ranges; raises ValueError outside."""
  if values.dtype == np.uint8:
    return values
  if values.dtype.itemsize == 2 and values.dtype.kind == "u":
    return (values >> 8).astype(np.uint8)
  least, most = values.min(), values.max()
  if not (least >= 0 and most <= (255 if values.dtype.kind == "f" else 65535)):  # NaN too
    raise ValueError(
      f"its values go from {least:g} to {most:g}: write 0 … 1 as float, or 8 or 16 bits"
    )
  if values.dtype.kind == "f":
    return np.rint(values * (255 if most <= 1 else 1)).astype(np.uint8)
  return (values >> (8 if most > 255 else 0)).astype(np.uint8)


def has_alpha(file):
  """Returns whether an image file has transparency; False if it cannot be read."""
  try:
    with Image.open(file) as image:
      return image.has_transparency_data
  except Exception:  # reading it later raises the reason
    return False


def _read(image):
  has_rgb_profile = image.mode in ("RGB", "RGBA", "P")  # not that of inks or of grey
  profile = image.info.get("icc_profile") if has_rgb_profile else None
  image = upright(image)
  if not image.has_transparency_data:
    return Picture(np.array(image.convert("RGB")), None, profile)
  values = np.array(image.convert("RGBA"))
  return Picture(values[..., :3], values[..., 3], profile)


def read_mask(file):
  """Reads a mask, float32 [H, W] in [0, 1]: the brightness times the alpha of an image file."""
  picture = read(file)
  mask = np.asarray(Image.fromarray(picture.rgb).convert("L"), np.float32) / 255
  return mask if picture.alpha is None else mask * (picture.alpha / np.float32(255))


def check_name(file):
  """Raises UserError unless the name is that of an image file that can be written."""
  if Path(file).suffix.lower() not in _FORMATS or Path(file).is_dir():
    raise UserError(f"{file} is no name of an image file; give one in {', '.join(_FORMATS)}")


def check_alpha(file):
  """Raises UserError if the format of the file's suffix has no alpha channel."""
  if Path(file).suffix.lower() in _WITHOUT_ALPHA:
    raise UserError(f"{file} cannot keep the content's alpha channel: write .png or .webp")


def write(file, picture):
  """Writes a Picture in the format of the file's suffix.

  Raises UserError for other suffixes, and for alpha in a format without it.
  """
  check_name(file)
  suffix = Path(file).suffix.lower()
  if picture.alpha is None:
    image = Image.fromarray(picture.rgb)
  else:
    check_alpha(file)
    image = Image.fromarray(np.dstack([picture.rgb, picture.alpha]))
  data = io.BytesIO()
  options = {"icc_profile": picture.profile} if picture.profile else {}
  image.save(data, **_FORMATS[suffix], **options)
  write_atomically(file, data.getvalue())


def scaled_shape(height, width, shorter):
  """Returns (height, width) scaled to this shorter side and rounded.

  Raises UserError if it exceeds the limits of an image.
  """
  scale = shorter / min(height, width)
  shape = tuple(max(1, math.floor(side * scale + 0.5)) for side in (height, width))
  if max(shape) > MAX_SIDE or math.prod(shape) > MAX_PIXELS:
    raise UserError(_too_large(f"--size={shorter} makes {shape[1]}×{shape[0]} pixels of it"))
  return shape


def resize(image, shape):
  """Resizes an image [H, W, ...] to shape (height, width): area-averaged if smaller, else cubic."""
  if image.shape[:2] == tuple(shape):
    return image
  shrinks = image.shape[0] > shape[0]
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  return cv2.resize(image, tuple(shape)[::-1], interpolation=interpolation)
