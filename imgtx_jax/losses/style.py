"""Losses of style transfer on VGG16's features (after StyTr2, arXiv:2105.14576).

Features are those of vgg16_features, every layer divided by its mean activation: published weights
of content and style presume layers of one scale, which plain VGG16's are not.
"""

import jax
import jax.numpy as jnp

from imgtx_jax.pretrained.vgg import vgg16_features

CONTENT_LAYERS = ("relu4_1", "relu5_1")
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

# Mean activation of the weights of importers/lpips.py over 200 ImageNet photos of
# 256×256 pixels (a property of VGG16 and photos, not of a data set: the first and the second
# hundred agree within 9 %). Measured by
#   python -c "from imgtx_jax.losses import style; print(style.mean_activations(params, images))"
# with params = importers.lpips.load()["vgg"], images float32 [200, 256, 256, 3] in [-1, 1].
MEAN_ACTIVATION = {
  "relu1_1": 0.324,
  "relu2_1": 0.834,
  "relu3_1": 1.358,
  "relu4_1": 1.131,
  "relu5_1": 0.645,
}
_VARIANCE = 1e-5  # added to variances: a dead channel has none, and its root no gradient


def features(params, images, *, dtype=jnp.float32):
  """{layer: float32 [B, h, w, C]} of images [B, H, W, 3] in [-1, 1], at unit mean activation."""
  found = vgg16_features(params, images, dtype=dtype)
  return {name: found[name].astype(jnp.float32) / MEAN_ACTIVATION[name] for name in STYLE_LAYERS}


def mean_activations(params, images):
  """What MEAN_ACTIVATION holds, of other images [B, H, W, 3]."""
  found = vgg16_features(params, images)
  return {name: float(found[name].mean()) for name in STYLE_LAYERS}


def moments(features):
  """{layer: (mean, deviation)} over the positions of {layer: [B, h, w, C]}; [B, C] each."""
  return {name: _moments(x) for name, x in features.items()}


def blend(first, second, strength):
  """Moments between those of two images: the second's at strength [B] = 1, the first's at 0."""
  share = strength[:, None]
  return jax.tree.map(lambda a, b: (1.0 - share) * a + share * b, first, second)


def style(output, target):
  """Mean squared differences of means and of deviations, summed over the layers; [B].

  output, target: moments of the image and of the style.
  """
  total = 0.0
  for name in STYLE_LAYERS:
    for ours, theirs in zip(output[name], target[name], strict=True):
      total += jnp.mean((ours - theirs) ** 2, axis=-1)
  return total


def content(output, target, layers=CONTENT_LAYERS):
  """Mean squared difference of instance-normalised features, summed over layers; [B].

  output, target: features of the image and of its content. 0 … 4 a layer: 2 of unrelated images.
  """
  total = 0.0
  for name in layers:
    total += jnp.mean((_normalize(output[name]) - _normalize(target[name])) ** 2, axis=(1, 2, 3))
  return total


def identity(output, target):
  """Mean squared difference of features, summed over the layers (StyTr2's second identity loss);
  [B]. The first is that of pixels."""
  return sum(jnp.mean((output[n] - target[n]) ** 2, axis=(1, 2, 3)) for n in STYLE_LAYERS)


def total_variation(images):
  """Mean squared difference of neighbouring pixels of images [B, H, W, 3]; [B]."""
  return sum(jnp.mean(jnp.diff(images, axis=axis) ** 2, axis=(1, 2, 3)) for axis in (1, 2))


def _moments(x):
  mean = jnp.mean(x, axis=(1, 2))
  variance = jnp.mean((x - mean[:, None, None]) ** 2, axis=(1, 2))
  return mean, jnp.sqrt(variance + _VARIANCE)


def _normalize(x):
  mean, deviation = _moments(x)
  return (x - mean[:, None, None]) / deviation[:, None, None]
