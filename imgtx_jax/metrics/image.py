"""Metrics of pairs of images [B, H, W, 3] in [-1, 1]: PSNR, SSIM, patch borders."""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.errors import UserError

# Wang et al. 2004: the window's side in pixels, its Gaussian's deviation, constants for range 1.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_BLOCK_BYTES = 2**26  # of float32 pixels at once, where all images are compared with all
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003


def psnr(x, y):
  """Returns the peak signal-to-noise ratio [B] in dB; values are clipped to [-1, 1] first."""
  error = jnp.mean((jnp.clip(x, -1, 1) - jnp.clip(y, -1, 1)) ** 2, axis=(1, 2, 3))
  return -10.0 * jnp.log10(jnp.maximum(error, 1e-10) / 4.0)


def ssim(x, y):
  """Returns the structural similarity [B] of each pair (Wang et al. 2004), 1 for equal images.

  It agrees with scikit-image with gaussian_weights, sigma 1.5, population covariances and
  data_range 1. Images are clipped and scaled to [0, 1], windows lie inside the image, and channels
  are averaged. Raises UserError for images smaller than a window, 11 pixels.
  """
  x, y = _check_pair(x, y, scales=1)
  return _similarity(x, y)[0].mean(axis=-1)


def ms_ssim(x, y):
  """Returns the multi-scale structural similarity [B] (Wang et al. 2003), 1 for equal images.

  It has five scales, each half the one before. Negative similarities of a channel count as 0.
  Raises UserError for images under 161 pixels, whose smallest scale is smaller than a window.
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
  """Returns both images in [0, 1], float32; raises UserError if sizes differ or are too small."""
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
  """Returns SSIM and its contrast-structure factor, both [B, C], of images in [0, 1]."""
  # Variances do not change by a shift; centred values lose less of them in float32.
  a, b = x - 0.5, y - 0.5
  mean_a, mean_b = _blur(a), _blur(b)
  variances = _blur(a * a + b * b) - mean_a**2 - mean_b**2
  covariance = _blur(a * b) - mean_a * mean_b
  structure = (2 * covariance + _C2) / (variances + _C2)
  mean_x, mean_y = mean_a + 0.5, mean_b + 0.5
  luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
  return (luminance * structure).mean(axis=(1, 2)), structure.mean(axis=(1, 2))


def _blur(x):
  """Returns Gaussian means [B, H − 10, W − 10, C] of the windows inside images [B, H, W, C].

  Two products with banded matrices are faster than a depthwise convolution on every device.
  """
  rows, columns = (_bands(size) for size in x.shape[1:3])
  highest = jax.lax.Precision.HIGHEST
  return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=highest)


def _bands(size):
  """Returns the matrix [size − 10, size] that averages along an axis under a Gaussian."""
  offset = np.arange(_WINDOW) - _WINDOW // 2
  weights = np.exp(-0.5 * (offset / _SIGMA) ** 2)
  matrix = np.zeros((size - _WINDOW + 1, size), np.float32)
  for row in range(len(matrix)):
    matrix[row, row : row + _WINDOW] = weights / weights.sum()
  return matrix


def _halve(x):
  """Returns means of 2 × 2 pixels, [B, ⌈H / 2⌉, ⌈W / 2⌉, C]; an odd edge is repeated."""
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean(axis=(2, 4))


def border_gradients(images, patch):
  """Returns mean absolute differences of neighbouring pixels (across borders, inside patches).

  Both are [B]. A ratio higher than that of real images means a visible patch grid.
  """
  across, inside = [], []
  for axis in (1, 2):
    step = jnp.abs(jnp.diff(jnp.clip(images, -1, 1), axis=axis)).mean(axis=(3 - axis, 3))
    border = np.arange(1, images.shape[axis]) % patch == 0
    across.append(step[:, border].mean(axis=1))
    inside.append(step[:, ~border].mean(axis=1))
  return (across[0] + across[1]) / 2, (inside[0] + inside[1]) / 2


def nearest_psnr(images, training):
  """Returns the PSNR [B] between each image and its nearest training image: what copying reaches.

  images and training are uint8 [B, H, W, 3] and [T, H, W, 3] on the host.
  """
  size = images[0].size
  rows = max(1, _BLOCK_BYTES // (4 * size))

  def blocks(array):
    for start in range(0, len(array), rows):
      block = array[start : start + rows].reshape(-1, size).astype(np.float32) / 127.5 - 1.0
      yield start, block, (block**2).sum(axis=1)

  best = np.full(len(images), np.inf)
  for _, t, t_squared in blocks(training):
    for start, x, x_squared in blocks(images):
      nearest = (t_squared - 2 * x @ t.T).min(axis=1) + x_squared
      best[start : start + len(x)] = np.minimum(best[start : start + len(x)], nearest)
  return -10.0 * np.log10(np.maximum(best / size, 1e-10) / 4.0)
