"""Everyday corruptions of images, each at three strengths; strength 0 leaves them as they are.

Amounts are fractions of the image's side or of the full range of brightness, so that they mean the
same at any size. Host functions of uint8 images [n, H, W, 3].
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

STRENGTHS = (1, 2, 3)


class Corruption(NamedTuple):
  """A corruption.

  apply: (image uint8 [H, W, 3], amount, draw) → uint8 [H, W, 3]. amounts: one for each strength.
  unit: format string of an amount.
  """

  apply: Callable
  amounts: tuple[float, ...]
  unit: str


def _brighten(image, amount, draw):
  del draw
  return _round(image + 255.0 * amount)


def _blur(image, amount, draw):
  del draw
  return cv2.GaussianBlur(image, (0, 0), amount * image.shape[0], borderType=cv2.BORDER_REPLICATE)


def _add_noise(image, amount, draw):
  return _round(image + 255.0 * amount * draw.standard_normal(image.shape))


def _compress(image, amount, draw):
  del draw
  options = [cv2.IMWRITE_JPEG_QUALITY, int(amount)]
  # OpenCV's channels are blue, green, red.
  _, data = cv2.imencode(".jpg", image[:, :, ::-1], options)
  return cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]


def _crop(image, amount, draw):
  del draw
  height, width, _ = image.shape
  top, left = (max(1, round(amount * side)) for side in (height, width))
  inside = image[top : height - top, left : width - left]
  return cv2.resize(inside, (width, height), interpolation=cv2.INTER_LINEAR)


CORRUPTIONS = {
  "brighter": Corruption(_brighten, (0.1, 0.2, 0.4), "+{:.0%} of white"),
  "darker": Corruption(_brighten, (-0.1, -0.2, -0.4), "{:.0%} of white"),
  "blur": Corruption(_blur, (0.02, 0.04, 0.08), "{:.0%} of the side"),
  "noise": Corruption(_add_noise, (0.04, 0.08, 0.16), "{:.0%} of white"),
  "JPEG": Corruption(_compress, (75, 40, 10), "quality {:.0f}"),
  "crop": Corruption(_crop, (0.05, 0.1, 0.2), "{:.0%} off each edge"),
}


def corrupt(name, images, strength, seed=0):
  """Returns images [n, H, W, 3] under the corruption of that name; strength: 0 … 3.

  The noise of image i depends on the seed and i alone, and scales with the strength.
  """
  if strength == 0:
    return images.copy()
  apply, amounts, _ = CORRUPTIONS[name]
  amount = amounts[strength - 1]
  corrupted = [
    apply(image, amount, np.random.default_rng((seed, i))) for i, image in enumerate(images)
  ]
  return np.stack(corrupted)


def describe(name, strength):
  """Returns the amount in words, such as "quality 40"."""
  _, amounts, unit = CORRUPTIONS[name]
  return unit.format(amounts[strength - 1]).replace("-", "\u2212")


def _round(image):
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)
