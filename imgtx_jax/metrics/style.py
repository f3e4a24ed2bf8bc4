"""Measures of style transfer: what an output keeps of its content, and what it has of its style.

Images are [B, H, W, 3] in [-1, 1]; features are VGG16's, as losses.style.features gives them unless
a function says otherwise. The loss functions that are measures too (content, style: the mean and
deviation of features) are in losses/style.py. Nothing here is an ArtFID: a Fréchet distance to a
few dozen styles is rank-deficient.
"""

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = (0.299, 0.587, 0.114)  # of Rec. 601, as JPEG and Pillow have it
_ROWS = 512  # of a similarity map in memory at a time
BINS, _RANGE, _WIDTH = 64, 3.0, 0.02  # of the histogram: HistoGAN's
_HISTOGRAM_SIDE = 256
_EPSILON = 1e-6
_HIGHEST = jax.lax.Precision.HIGHEST


def gray(images):
  """The luma of images [B, H, W, 3]; [B, H, W, 1]."""
  return jnp.einsum("bhwc,c->bhw", images, jnp.array(_LUMA), precision=_HIGHEST)[..., None]


def cfsd(output, content):
  """Content feature structural distance of each pair; [B], 0 for equal features. arXiv:2312.09008.

  output, content: relu3_1 of VGG, [B, h, w, C], not scaled: the softmax minds the scale.
  Of each image, S is the [h·w, h·w] map of self-similarity: row i is the softmax over j of
  f_i · f_j / C², where f_i [C] are the features of position i. The distance is the sum over rows of
  KL(S of the content ‖ S of the output), in nats: the sum and not the mean, as the paper's code
  has it. It grows with h·w and depends on the network: figures compare within one size of images
  alone, and not with the paper's, which are of VGG19 at 512². The division by C² leaves S nearly
  uniform: read the distance as an order, beside LPIPS.
  """
  found = jax.lax.map(lambda pair: _structure_distance(*pair), (output, content))
  return jnp.maximum(found, 0.0)  # rounding goes below


def _structure_distance(output, content):
  """cfsd of one pair [h, w, C]; scalar. Blocks of rows bound the memory."""
  width = output.shape[-1]
  output, content = (x.reshape(-1, width).astype(jnp.float32) / width for x in (output, content))

  def divergence(rows):
    ours, theirs = (
      jnp.matmul(features, row, precision=_HIGHEST)
      for features, row in zip((output, content), rows, strict=True)
    )
    share = jax.nn.softmax(theirs)
    # Σ p (log p − log q), without the logarithms of small shares: exactly 0 for equal rows.
    return jnp.sum(share * (theirs - ours)) - (_log_sum(theirs) - _log_sum(ours))

  return jax.lax.map(divergence, (output, content), batch_size=_ROWS).sum()


def _log_sum(logits):
  return jax.nn.logsumexp(logits)


def grams(features):
  """{layer: [B, h, w, C]} → {layer: [B, C, C]}: products of channels, averaged over positions.
  arXiv:1508.06576."""
  return {
    name: jnp.einsum("bhwc,bhwd->bcd", x, x, precision=_HIGHEST) / (x.shape[1] * x.shape[2])
    for name, x in features.items()
  }


def gram_distance(output, target):
  """Mean squared differences of Gram matrices, summed over the layers; [B]."""
  return sum(jnp.mean((output[name] - target[name]) ** 2, axis=(1, 2)) for name in output)


def histogram(images):
  """RGB-uv histograms of images; [B, 3, 64, 64], each image's sum 1. arXiv:2011.11731.

  For each channel c and the two others a, b: how much brightness √(r² + g² + b²) lies at
  (log c − log a, log c − log b), in 64×64 bins over [-3, 3]² under the kernel 1 / (1 + (d / .02)²).
  Larger images are first reduced to sides of 256.
  """
  sides = [min(side, _HISTOGRAM_SIDE) for side in images.shape[1:3]]
  shape = (len(images), *sides, 3)
  if images.shape != shape:
    images = jax.image.resize(images, shape, "linear", antialias=True)
  pixels = jnp.clip((images + 1) / 2, 0, 1).reshape(len(images), -1, 3)
  found = jax.lax.map(_histogram, pixels)
  return found / (found.sum(axis=(1, 2, 3), keepdims=True) + _EPSILON)


def _histogram(pixels):
  """Of the pixels [n, 3] of an image, in [0, 1]; [3, 64, 64]."""
  centers = np.linspace(-_RANGE, _RANGE, BINS, dtype=np.float32)
  brightness = jnp.sqrt(jnp.sum(pixels**2, axis=1) + _EPSILON)
  logs = jnp.log(pixels + _EPSILON)

  def weights(difference):  # [n] → [n, 64]
    return 1.0 / (1.0 + ((difference[:, None] - centers) / _WIDTH) ** 2)

  planes = []
  for channel, first, second in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
    u = weights(logs[:, channel] - logs[:, first]) * brightness[:, None]
    v = weights(logs[:, channel] - logs[:, second])
    planes.append(jnp.matmul(u.T, v, precision=_HIGHEST))
  return jnp.stack(planes)


def histogram_distance(x, y):
  """Hellinger distance of histograms [B, 3, 64, 64]; [B] in 0 … 1. arXiv:2011.11731."""
  return jnp.sqrt(jnp.sum((jnp.sqrt(x) - jnp.sqrt(y)) ** 2, axis=(1, 2, 3)) / 2)


def transfer_color(content, style):
  """The baseline that any stylizer must beat: each channel of content images [B, H, W, 3] at the
  style's mean and deviation (after Reinhard et al. 2001, in RGB). Not clipped; NumPy arrays."""
  mean, deviation = content.mean(axis=(1, 2), keepdims=True), content.std((1, 2), keepdims=True)
  scale = style.std(axis=(1, 2), keepdims=True) / np.maximum(deviation, _EPSILON)
  return (content - mean) * scale + style.mean(axis=(1, 2), keepdims=True)
