"""Losses of style transfer on VGG16's features (after StyTr2, arXiv:2105.14576).

Features are those of vgg16_features, each layer divided by its mean activation: published loss
weights assume layers of equal scale, which VGG16's layers do not have.
"""

import jax
import jax.numpy as jnp

from imgtx_jax.pretrained.vgg import vgg16_features

CONTENT_LAYERS = ("relu4_1", "relu5_1")
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

# Mean activations with the weights of pretrained/lpips_weights.py over 200 ImageNet photos of
# 256 × 256 pixels. They hardly depend on the photos: the first and the second hundred agree within
# 9 %. Measured by
#   python -c "from imgtx_jax.losses import style; print(style.mean_activations(params, images))"
# with params = lpips_weights.load()["vgg"], images float32 [200, 256, 256, 3] in [-1, 1].
MEAN_ACTIVATION = {
  "relu1_1": 0.324,
  "relu2_1": 0.834,
  "relu3_1": 1.358,
  "relu4_1": 1.131,
  "relu5_1": 0.645,
}
_VARIANCE = 1e-5  # added to variances: the square root's gradient at 0 is infinite


def features(params, images, *, dtype=jnp.float32):
  """Returns {layer: float32 [B, h, w, C]} of images [B, H, W, 3] in [-1, 1].

  Layers are divided by MEAN_ACTIVATION. dtype is that of VGG16's computation.
  """
  layers = vgg16_features(params, images, dtype=dtype)
  return {name: layers[name].astype(jnp.float32) / MEAN_ACTIVATION[name] for name in STYLE_LAYERS}


def mean_activations(params, images):
  """Measures MEAN_ACTIVATION on images [B, H, W, 3]; {layer: float}."""
  layers = vgg16_features(params, images)
  return {name: float(layers[name].mean()) for name in STYLE_LAYERS}


def moments(features):
  """Returns {layer: (mean [B, C], deviation [B, C])} of features {layer: [B, h, w, C]}."""
  return {name: _moments(x) for name, x in features.items()}


def blend(first, second, strength):
  """Interpolates linearly between moments `first` and `second`.

  strength: [B], 0 gives the first and 1 the second.
  """
  weight = strength[:, None]
  return jax.tree.map(lambda a, b: (1.0 - weight) * a + weight * b, first, second)


def style(output, target):
  """Returns the mean squared differences of means and deviations, summed over layers; [B].

  output and target are the moments of the image and of the style.
  """
  total = 0.0
  for name in STYLE_LAYERS:
    for ours, theirs in zip(output[name], target[name], strict=True):
      total += jnp.mean((ours - theirs) ** 2, axis=-1)
  return total


def content(output, target, layers=CONTENT_LAYERS):
  """Returns the mean squared difference of instance-normalised features, summed over layers; [B].

  output and target are the features of the image and of its content. A layer contributes 0 … 4;
  unrelated images have about 2.
  """
  total = 0.0
  for name in layers:
    total += jnp.mean((_normalize(output[name]) - _normalize(target[name])) ** 2, axis=(1, 2, 3))
  return total


def _moments(x):
  mean = jnp.mean(x, axis=(1, 2))
  variance = jnp.mean((x - mean[:, None, None]) ** 2, axis=(1, 2))
  return mean, jnp.sqrt(variance + _VARIANCE)


def _normalize(x):
  mean, deviation = _moments(x)
  return (x - mean[:, None, None]) / deviation[:, None, None]
