"""Metrics of style transfer: how well an output keeps its content and matches its style.

Images are [B, H, W, 3] in [-1, 1]. Features are those of losses.style.features unless stated
otherwise. The content and style losses of losses/style.py serve as metrics too. ArtFID is left out:
a Fréchet distance to a few dozen styles is rank-deficient.
"""

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as in JPEG and Pillow
_ROWS = 512  # rows of a similarity map in memory at a time
BINS, _RANGE, _WIDTH = 64, 3.0, 0.02  # HistoGAN's histogram
_HISTOGRAM_SIDE = 256
_EPSILON = 1e-6
_HIGHEST = jax.lax.Precision.HIGHEST


def gray(images):
  """Returns the luma [B, H, W, 1] of images [B, H, W, 3]."""
  return jnp.einsum("bhwc,c->bhw", images, jnp.array(_LUMA), precision=_HIGHEST)[..., None]


def cfsd(output, content):
  """Returns the content feature structural distance of each pair (arXiv:2312.09008); [B].

  S is an image's self-similarity map [h·w, h·w]: row i is the softmax over j of f_i · f_j / C²,
  where f_i [C] are the features at position i. The distance is the sum over rows of
  KL(S of the content ‖ S of the output) in nats; like the paper's code it sums and does not
  average. It is 0 for equal features. It grows with h·w and depends on the network, so that values
  are comparable only at one image size, and not with the paper's (VGG19 at 512²). The division by
  C² leaves S nearly uniform: use the distance as a ranking, beside LPIPS.

  Args:
    output: VGG's relu3_1 [B, h, w, C], unscaled, since the softmax depends on the scale.
    content: the same of the content images.
  """
  distances = jax.lax.map(lambda pair: _structure_distance(*pair), (output, content))
  return jnp.maximum(distances, 0.0)  # rounding may give less than 0


def _structure_distance(output, content):
  """Returns cfsd of one pair of features [h, w, C]; scalar. Blocks of rows bound the memory."""
  width = output.shape[-1]
  output, content = (x.reshape(-1, width).astype(jnp.float32) / width for x in (output, content))

  def divergence(rows):
    ours, theirs = (
      jnp.matmul(features, row, precision=_HIGHEST)
      for features, row in zip((output, content), rows, strict=True)
    )
    probs = jax.nn.softmax(theirs)
    # Σ p (log p − log q), without logarithms of small probabilities: exactly 0 for equal rows.
    normalizers = jax.nn.logsumexp(theirs) - jax.nn.logsumexp(ours)
    return jnp.sum(probs * (theirs - ours)) - normalizers

  return jax.lax.map(divergence, (output, content), batch_size=_ROWS).sum()


def grams(features):
  """Returns Gram matrices {layer: [B, C, C]} of features {layer: [B, h, w, C]}.

  They are means over positions of products of channels (arXiv:1508.06576).
  """
  return {
    name: jnp.einsum("bhwc,bhwd->bcd", x, x, precision=_HIGHEST) / (x.shape[1] * x.shape[2])
    for name, x in features.items()
  }


def gram_distance(output, target):
  """Returns mean squared differences of Gram matrices, summed over layers; [B]."""
  return sum(jnp.mean((output[name] - target[name]) ** 2, axis=(1, 2)) for name in output)


def histogram(images):
  """Returns RGB-uv histograms [B, 3, 64, 64] of images, each with sum 1 (arXiv:2011.11731).

  For each channel c and the other two a, b it is the brightness √(r² + g² + b²) at
  (log c − log a, log c − log b), in 64 × 64 bins over [-3, 3]² with the kernel
  1 / (1 + (d / .02)²). Larger images are first reduced to sides of 256.
  """
  sides = [min(side, _HISTOGRAM_SIDE) for side in images.shape[1:3]]
  shape = (len(images), *sides, 3)
  if images.shape != shape:
    images = jax.image.resize(images, shape, "linear", antialias=True)
  pixels = jnp.clip((images + 1) / 2, 0, 1).reshape(len(images), -1, 3)
  histograms = jax.lax.map(_histogram, pixels)
  return histograms / (histograms.sum(axis=(1, 2, 3), keepdims=True) + _EPSILON)


def _histogram(pixels):
  """Returns the RGB-uv histogram [3, 64, 64], not normalised, of pixels [n, 3] in [0, 1]."""
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
  """Returns the Hellinger distance [B] of histograms [B, 3, 64, 64]; 0 … 1 (arXiv:2011.11731)."""
  return jnp.sqrt(jnp.sum((jnp.sqrt(x) - jnp.sqrt(y)) ** 2, axis=(1, 2, 3)) / 2)


def transfer_color(content, style):
  """Gives content images the style images' mean and deviation of each channel.

  This is the baseline for any stylizer (after Reinhard et al. 2001, in RGB). NumPy arrays
  [B, H, W, 3]; the result is not clipped.
  """
  mean, deviation = content.mean(axis=(1, 2), keepdims=True), content.std((1, 2), keepdims=True)
  scale = style.std(axis=(1, 2), keepdims=True) / np.maximum(deviation, _EPSILON)
  return (content - mean) * scale + style.mean(axis=(1, 2), keepdims=True)
