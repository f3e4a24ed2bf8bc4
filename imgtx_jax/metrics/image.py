"""Measures on pairs of images [B, H, W, 3] in [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.errors import UserError

# Wang et al. 2004: an 11 pixel window, its Gaussian's deviation, and constants for a range of 1.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003


def psnr(x, y):
  """Peak signal-to-noise ratio in dB of each pair; [B]. Values are clipped to [-1, 1] first."""
  error = jnp.mean((jnp.clip(x, -1, 1) - jnp.clip(y, -1, 1)) ** 2, axis=(1, 2, 3))
  return -10.0 * jnp.log10(jnp.maximum(error, 1e-10) / 4.0)


def ssim(x, y):
  """Structural similarity of each pair (Wang et al. 2004); [B], 1 for equal images.

  As scikit-image with gaussian_weights, sigma 1.5, population covariances and data_range 1: images
  are clipped and moved to [0, 1], windows lie wholly inside, channels are averaged.
  """
  x, y = _check_pair(x, y, scales=1)
  return _similarity(x, y)[0].mean(axis=-1)


def ms_ssim(x, y):
  """Multi-scale structural similarity of each pair (Wang et al. 2003); [B], 1 for equal images.

  Five scales, each half the one before; a channel whose contrast or structure disagrees (below 0)
  counts as 0. UserError where the smallest scale is smaller than a window: under 161 pixels.
  """
  x, y = _check_pair(x, y, scales=len(_SCALE_WEIGHTS))
  product = 1.0
  for scale, weight in enumerate(_SCALE_WEIGHTS):
    if scale:
      x, y = _halve(x), _halve(y)
    whole, structure = _similarity(x, y)
    last = scale == len(_SCALE_WEIGHTS) - 1
    product *= jnp.maximum(whole if last else structure, 0.0) ** weight
  return product.mean(axis=-1)


def _check_pair(x, y, scales):
  """Images in [0, 1], float32; UserError where their sizes differ or are too small."""
  if x.shape != y.shape:
    raise UserError(f"SSIM: images of {x.shape} and {y.shape} differ in size: resize one of them")
  least = (_WINDOW - 1) * 2 ** (scales - 1) + 1
  if min(x.shape[1:3]) < least:
    name = "SSIM" if scales == 1 else "MS-SSIM"
    raise UserError(
      f"{name}: images of {x.shape[1]}×{x.shape[2]} are smaller than {least}×{least}: "
      + ("use larger images" if scales == 1 else "use SSIM or larger images")
    )
  return tuple((jnp.clip(jnp.asarray(i, jnp.float32), -1, 1) + 1) / 2 for i in (x, y))


def _similarity(x, y):
  """Images [B, H, W, C] in [0, 1] → SSIM, and its part of contrast and structure; [B, C] each."""
  # Variances do not mind where 0 is; closer to it, float32 loses less of them.
  a, b = x - 0.5, y - 0.5
  mean_a, mean_b = _blur(a), _blur(b)
  variances = _blur(a * a + b * b) - mean_a**2 - mean_b**2
  covariance = _blur(a * b) - mean_a * mean_b
  structure = (2 * covariance + _C2) / (variances + _C2)
  mean_x, mean_y = mean_a + 0.5, mean_b + 0.5
  luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
  return (luminance * structure).mean(axis=(1, 2)), structure.mean(axis=(1, 2))


def _blur(x):
  """Gaussian means [B, H − 10, W − 10, C] of the windows inside images [B, H, W, C].

  Two products with banded matrices: on every device faster than a convolution channel by channel.
  """
  rows, columns = (_bands(size) for size in x.shape[1:3])
  highest = jax.lax.Precision.HIGHEST
  return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=highest)


def _bands(size):
  """Matrix [size − 10, size] that averages along an axis under a Gaussian."""
  offset = np.arange(_WINDOW) - _WINDOW // 2
  weights = np.exp(-0.5 * (offset / _SIGMA) ** 2)
  matrix = np.zeros((size - _WINDOW + 1, size), np.float32)
  for row in range(len(matrix)):
    matrix[row, row : row + _WINDOW] = weights / weights.sum()
  return matrix


def _halve(x):
  """Means of 2×2 pixels, [B, H, W, C] → [B, ⌈H / 2⌉, ⌈W / 2⌉, C]; an odd edge is repeated."""
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean(axis=(2, 4))


def border_gradients(images, patch):
  """Mean absolute difference of neighbouring pixels: across patch borders, and inside patches.

  Returns two [B]; their ratio over that of the originals tells a visible patch grid.
  """
  across, inside = [], []
  for axis in (1, 2):
    step = jnp.abs(jnp.diff(jnp.clip(images, -1, 1), axis=axis)).mean(axis=(3 - axis, 3))
    border = np.arange(1, images.shape[axis]) % patch == 0
    across.append(step[:, border].mean(axis=1))
    inside.append(step[:, ~border].mean(axis=1))
  return (across[0] + across[1]) / 2, (inside[0] + inside[1]) / 2


def nearest_psnr(images, training):
  """PSNR [B] of answering each image with its nearest training image: what copying would reach.

  uint8 arrays [B, H, W, 3] and [T, H, W, 3], on the host.
  """
  x = images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0
  best = np.full(len(x), np.inf)
  for start in range(0, len(training), 1024):
    t = training[start : start + 1024].reshape(-1, x.shape[1]).astype(np.float32) / 127.5 - 1.0
    distance = (x**2).sum(1)[:, None] - 2 * x @ t.T + (t**2).sum(1)
    best = np.minimum(best, distance.min(axis=1))
  return -10.0 * np.log10(np.maximum(best / x.shape[1], 1e-10) / 4.0)
