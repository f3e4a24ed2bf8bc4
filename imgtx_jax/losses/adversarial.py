"""Adversarial losses on logits [B], and penalties on the discriminator's gradient.

score stands for a function of images [B, H, W, C] that returns logits [B].
"""

import jax
import jax.numpy as jnp


def relativistic(real, fake):
  """Losses (discriminator, generator), each [B], of paired logits (R3GAN, arXiv:2501.05441).

  softplus(−(D(x) − D(G))) and softplus(D(x) − D(G)); pairs should share their label.
  """
  margin = real - fake
  return jax.nn.softplus(-margin), jax.nn.softplus(margin)


def nonsaturating(real, fake):
  """Losses (discriminator, generator), each [B], of the original GAN (arXiv:1406.2661)."""
  return jax.nn.softplus(-real) + jax.nn.softplus(fake), jax.nn.softplus(-fake)


def hinge(real, fake):
  """Losses (discriminator, generator), each [B] (arXiv:1705.02894)."""
  return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake), -fake


LOSSES = {"relativistic": relativistic, "nonsaturating": nonsaturating, "hinge": hinge}


def gradient_penalty(score, images):
  """Mean ‖∇D‖² at images [B, H, W, C]; R1 at real ones, R2 at fake ones; scalar.
  arXiv:1801.04406. Differentiating it takes a second derivative of the network."""
  grads = jax.grad(lambda x: score(x).sum())(images)
  return jnp.mean(jnp.sum(grads**2, axis=(1, 2, 3)))


def difference_penalty(score, images, noise, sigma):
  """The same by a finite difference: mean ((D(x + σε) − D(x)) / σ)², ε standard normal noise
  [B, H, W, C] (arXiv:2509.24935). One draw has the right mean and a standard deviation of 135 %.

  score must compute in float32: in bfloat16 the quotient is wrong by half at σ = 1e-2.
  """
  difference = score(images + sigma * noise) - score(images)
  return jnp.mean((difference / sigma) ** 2)


def augment(images, keys, kinds):
  """Differentiable augmentation (DiffAugment, arXiv:2006.10738), the same for the same key.

  images [B, H, W, 3]; keys [B], one per example; kinds: names among color, translation, cutout.
  """
  return jax.vmap(lambda image, key: _augment_one(image, key, kinds))(images, keys)


def _augment_one(image, key, kinds):
  height, width, _ = image.shape
  for i, kind in enumerate(kinds):
    draw = jax.random.fold_in(key, i)
    a, b, c = jax.random.uniform(draw, (3,))
    if kind == "color":
      image = image + (a - 0.5)
      grey = image.mean(axis=-1, keepdims=True)
      image = (image - grey) * (2.0 * b) + grey
      image = (image - image.mean()) * (c + 0.5) + image.mean()
    elif kind == "translation":
      rows, columns = height // 8, width // 8
      padded = jnp.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="edge")
      start = (
        (a * (2 * rows + 1)).astype(jnp.int32),
        (b * (2 * columns + 1)).astype(jnp.int32),
        0,
      )
      image = jax.lax.dynamic_slice(padded, start, image.shape)
    elif kind == "cutout":
      row = jnp.abs(jnp.arange(height) + 0.5 - a * height) < height / 4
      column = jnp.abs(jnp.arange(width) + 0.5 - b * width) < width / 4
      image = jnp.where((row[:, None] & column)[..., None], 0.0, image)
    else:
      raise ValueError(f"unknown augmentation {kind!r}: color, translation or cutout")
  return image
