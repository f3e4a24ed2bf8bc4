"""Image files that users name, with what networks do not see: size, orientation, alpha, profile.

Reads what Pillow reads: colour, grey, palette, CMYK and 16-bit images become 8-bit RGB, turned as
their EXIF orientation says. The RGB values are kept as they are and so is their colour profile:
pixels that nothing changes stay the same to the bit.
"""

import io
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import write_atomically

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
  """The Picture in a file; UserError, in one line, for a file that is missing, no whole image, too
  small or too large."""
  try:
    data = Path(file).read_bytes()
  except OSError as error:
    raise UserError(f"{file} cannot be read ({error.strerror}); give image files") from error
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size says it better
      with Image.open(io.BytesIO(data)) as image:
        _check_size(file, *image.size)
        return _read(image)
  except UserError:
    raise
  except Image.DecompressionBombError as error:
    raise UserError(_too_large(f"{file} has far too many pixels")) from error
  except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
    reason = "not a known format" if isinstance(error, Image.UnidentifiedImageError) else error
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


def _read(image):
  has_rgb_profile = image.mode in ("RGB", "RGBA", "P")  # not that of inks or of grey
  profile = image.info.get("icc_profile") if has_rgb_profile else None
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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


def write(file, picture):
  """Writes a Picture in the format of the file's suffix.

  Raises UserError for other suffixes, and for alpha in a format without it.
  """
  check_name(file)
  suffix = Path(file).suffix.lower()
  if picture.alpha is None:
    image = Image.fromarray(picture.rgb)
  elif suffix in _WITHOUT_ALPHA:
    raise UserError(f"{file} cannot keep the content's alpha channel: write .png or .webp")
  else:
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
