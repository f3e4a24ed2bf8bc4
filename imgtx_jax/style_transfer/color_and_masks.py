"""Controls of style transfer: keeping the content's colours, masks, weights of styles.

Images are float32 [H, W, 3] in [-1, 1] on the host.
"""

import numpy as np

from imgtx_jax.errors import UserError

KEEP_COLOR = ("no", "luminance", "coral")
_MIN_VARIANCE = 1e-4  # of a colour axis: an image of few colours has a singular covariance


def keep_color(image, content, how):
  """Gives an image the content's colours by the method `how`, one of KEEP_COLOR."""
  if how == "luminance":
    return keep_chroma(image, content)
  return match_colors(image, content) if how == "coral" else image


def keep_chroma(image, content):
  """Combines the image's luma (BT.601) with the content's chroma, pixel by pixel.

  Chroma is the difference between channels: all three get the same shift. The shift is limited so
  that they stay in range, so that luma is clipped and never chroma.
  """
  weights = np.float32([0.299, 0.587, 0.114])
  shift = ((image - content) @ weights)[..., None]
  low, high = -1 - content.min(-1, keepdims=True), 1 - content.max(-1, keepdims=True)
  return content + np.clip(shift, low, high)


def match_colors(image, content):
  """Gives the image the content's mean and covariance of colours, clipped.

  This is CORAL (arXiv:1511.05547; for style transfer arXiv:1606.05897).
  """
  mean, covariance, centred = _moments(image)
  target_mean, target_covariance, _ = _moments(content)
  matrix = _power(covariance, -0.5) @ _power(target_covariance, 0.5)
  pixels = centred @ matrix.astype(np.float32) + target_mean
  return np.clip(pixels, -1, 1).reshape(image.shape)


def _moments(image):
  """Returns the mean [3], the covariance [3, 3], and the pixels [n, 3] minus their mean."""
  pixels = image.reshape(-1, 3)
  mean = pixels.mean(0, dtype=np.float64).astype(np.float32)
  centred = pixels - mean
  return mean, (centred.T @ centred).astype(np.float64) / len(pixels), centred


def _power(covariance, exponent):
  """Returns a power of a symmetric positive matrix."""
  values, vectors = np.linalg.eigh(covariance)
  return vectors * np.maximum(values, _MIN_VARIANCE) ** exponent @ vectors.T


def blend(content, images, masks):
  """Blends K images over the content by K masks.

  Masks whose sum exceeds 1 at a pixel are divided by it there.

  Args:
    content: [H, W, 3].
    images: K arrays [H, W, 3].
    masks: [K, H, W] in [0, 1].

  Returns:
    [H, W, 3], equal to the content to the bit where all masks are 0.
  """
  total = np.sum(masks, axis=0)[..., None]
  blended = content * (1 - np.minimum(total, 1))
  for image, mask in zip(images, masks, strict=True):
    blended += image * (mask[..., None] / np.maximum(total, 1))
  return np.where(total == 0, content, blended)


def parse_weights(text, count):
  """Parses --weights: numbers separated by commas, or nothing for equal weights.

  Returns weights [count] that sum to 1. Raises UserError for other numbers of weights, negative
  ones, or all zero.
  """
  if not text:
    return np.full(count, 1 / count)
  try:
    weights = np.array([float(part) for part in text.split(",")])
  except ValueError:
    raise UserError(f"--weights={text}: give numbers with commas, such as 0.7,0.3") from None
  if len(weights) != count:
    raise UserError(
      f"--weights={text} is {len(weights)} numbers for {count} styles; give one for each --style"
    )
  if not np.all(np.isfinite(weights)) or weights.min() < 0 or weights.sum() == 0:
    raise UserError(f"--weights={text}: weights are 0 or more, and not all 0; only ratios count")
  return weights / weights.sum()
