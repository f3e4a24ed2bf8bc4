"""What users ask of a style transfer beside the style: which colours, where, in which mixture.

Images are float32 [H, W, 3] in [-1, 1] on the host.
"""

import numpy as np

from imgtx_jax.errors import UserError

KEEP_COLOR = ("no", "luminance", "coral")
_LEAST_VARIANCE = 1e-4  # of a colour axis: an image of fewer colours has none to spread


def keep_color(image, content, how):
  """The image with the colours of the content; how: one of KEEP_COLOR."""
  if how == "luminance":
    return keep_chroma(image, content)
  return match_colors(image, content) if how == "coral" else image


def keep_chroma(image, content):
  """The luma of the image (BT.601) and the chroma of the content, pixel by pixel.

  Chroma is what the channels differ in, so one number is added to all three. It is held where they
  stay in range: what would be clipped is luma, never chroma.
  """
  weights = np.float32([0.299, 0.587, 0.114])
  shift = ((image - content) @ weights)[..., None]
  low, high = -1 - content.min(-1, keepdims=True), 1 - content.max(-1, keepdims=True)
  return content + np.clip(shift, low, high)


def match_colors(image, content):
  """The image with the content's mean colour and covariance of colours (CORAL, arXiv:1511.05547;
  for style transfer arXiv:1606.05897), clipped."""
  mean, covariance, centred = _moments(image)
  target_mean, target_covariance, _ = _moments(content)
  matrix = _power(covariance, -0.5) @ _power(target_covariance, 0.5)
  found = centred @ matrix.astype(np.float32) + target_mean
  return np.clip(found, -1, 1).reshape(image.shape)


def _moments(image):
  """Mean [3], covariance [3, 3], and the pixels [n, 3] less their mean."""
  pixels = image.reshape(-1, 3)
  mean = pixels.mean(0, dtype=np.float64).astype(np.float32)
  centred = pixels - mean
  return mean, (centred.T @ centred).astype(np.float64) / len(pixels), centred


def _power(covariance, exponent):
  values, vectors = np.linalg.eigh(covariance)
  return vectors * np.maximum(values, _LEAST_VARIANCE) ** exponent @ vectors.T


def blend(content, images, masks):
  """Each image where its mask [H, W] in [0, 1] says, the content elsewhere; K images, K masks.

  Where masks overlap and sum to more than 1, their images share the pixel.
  """
  total = np.sum(masks, axis=0)[..., None]
  found = content * (1 - np.minimum(total, 1))
  for image, mask in zip(images, masks, strict=True):
    found += image * (mask[..., None] / np.maximum(total, 1))
  return np.where(total == 0, content, found)


def parse_weights(text, count):
  """Shares [count], summing to 1, from numbers with commas; equal ones from an empty text."""
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
