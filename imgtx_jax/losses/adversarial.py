"""Adversarial losses of logits [B], and penalties on the discriminator's gradient.

The argument `score` is a function from images [B, H, W, C] to logits [B].
"""

import dataclasses

import jax
import jax.numpy as jnp

from imgtx_jax.option_fields import option

PENALTIES = ("difference", "exact")
AUGMENTATIONS = ("color", "translation", "cutout")


def relativistic(real, fake):
  """Returns losses (discriminator, generator), each [B], of paired logits [B].

  They are softplus(−(D(x) − D(G))) and softplus(D(x) − D(G)) (R3GAN, arXiv:2501.05441). The two
  images of a pair should have the same label.
  """
  margin = real - fake
  return jax.nn.softplus(-margin), jax.nn.softplus(margin)


def nonsaturating(real, fake):
  """Returns losses (discriminator, generator), each [B], of the first GAN (arXiv:1406.2661)."""
  return jax.nn.softplus(-real) + jax.nn.softplus(fake), jax.nn.softplus(-fake)


def hinge(real, fake):
  """Returns hinge losses (discriminator, generator), each [B] (arXiv:1705.02894)."""
  return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake), -fake


LOSSES = {"relativistic": relativistic, "nonsaturating": nonsaturating, "hinge": hinge}


@dataclasses.dataclass(frozen=True)
class AdversarialOptions:
  """How a discriminator is trained: the keys of config.adversary, without its optimizer."""

  loss: str = option("relativistic", "The adversarial loss: a name in LOSSES.")
  penalty: str = option(
    "difference", "How R1 and R2 are computed: by finite differences, or exact (twice the memory)."
  )
  penalty_weight: float = option(0.1, "Weight of R1 + R2.", least=0)
  penalty_weight_end: float = option(
    0.0, "The weight that penalty_weight falls to, by half a cosine.", least=0
  )
  penalty_anneal_fraction: float = option(
    0.0, "Fraction of the steps that this takes; 0: the weight stays.", least=0, most=1
  )
  penalty_every: int = option(
    1, "Steps from one penalty to the next; each then weighs as much more.", least=1
  )
  penalty_sigma: float = option(
    0.01, "Standard deviation of the finite differences' noise, in pixels of -1 to 1.", least=1e-6
  )
  penalty_fraction: float = option(
    0.25, "Fraction of the batch that the penalties are computed on.", least=1e-6, most=1
  )
  augment: tuple[str, ...] = option(
    ("color", "translation"), "Augmentations (DiffAugment) of what it sees, in this order."
  )
  consistency_weight: float = option(
    0.0, "Weight of equal logits with and without augmentation (balanced consistency).", least=0
  )
  see_taps: bool = option(False, "Whether it also sees the generator's conditioned images.")


def gradient_penalty(score, images):
  """Returns the mean ‖∇D‖² at images [B, H, W, C]; scalar (arXiv:1801.04406).

  It is R1 at real images and R2 at generated ones. Its gradient needs second derivatives of the
  network.
  """
  grads = jax.grad(lambda x: score(x).sum())(images)
  return jnp.mean(jnp.sum(grads**2, axis=(1, 2, 3)))


def difference_penalty(score, images, noise, sigma):
  """Estimates gradient_penalty by finite differences: mean ((D(x + σε) − D(x)) / σ)².

  The method is that of arXiv:2509.24935. One noise draw is unbiased for small σ, with a relative
  standard deviation of 135 %.

  Args:
    score: D. It must compute in float32: in bfloat16 the quotient is wrong by half at σ = 1e-2.
    images: x, [B, H, W, C].
    noise: ε, standard normal, [B, H, W, C].
    sigma: σ.

  Returns:
    A scalar.
  """
  difference = score(images + sigma * noise) - score(images)
  return jnp.mean((difference / sigma) ** 2)


def augment(images, keys, kinds):
  """Augments images differentiably (DiffAugment, arXiv:2006.10738).

  Args:
    images: [B, H, W, 3].
    keys: random keys [B]; equal keys give equal augmentations.
    kinds: names among "color", "translation" and "cutout", applied in this order.

  Returns:
    Images [B, H, W, 3].

  Raises:
    ValueError: for another kind.
  """
  return jax.vmap(lambda image, key: _augment_one(image, key, kinds))(images, keys)


def _augment_one(image, key, kinds):
  """Augments one image [H, W, 3]; see augment."""
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
      raise ValueError(f"unknown augmentation {kind!r}: one of {', '.join(AUGMENTATIONS)}")
  return image
