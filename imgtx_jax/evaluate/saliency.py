"""Heat maps of what a discriminator looks at: attention roll-out and input gradients.

Attention tells which patches feed [cls], gradients which pixels would change the answer; neither
proves what the answer rests on.
"""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.data import transforms


def exact(discriminator):
  """The Discriminator in plain float32, whatever training ran on: it has every gradient, and
  weights of attention to look at."""
  block = dataclasses.replace(discriminator.block, attention_kernel="xla", remat="none")
  return discriminator.clone(dtype=jnp.float32, block=block)


def roll_out(weights):
  """Attention [L, heads, T, T] through all layers (arXiv:2005.00928): how much the first token has
  of each token's input; [T], of sum 1. Half of every layer is the residual branch."""
  size = weights.shape[-1]
  row = jnp.zeros(size).at[0].set(1.0)
  for layer in weights.mean(axis=1)[::-1]:
    row = 0.5 * (row + row @ layer)
  return row


def look(discriminator, params, images, labels, repeat=lambda x: x):
  """What a Discriminator of exact() looks at, of images uint8 [B, H, W, 3] as labels int [B].

  repeat: images [B, H, W, 3] as it wants to see them (Adversary.repeat).
  Returns a dict: attention [B, h, w], how much [cls] has of every patch (what is missing to 1 is
  its own); logit [B, H, W], |gradient| of the logit by the pixels, summed over the channels; and
  class [B, H, W], the same of the log-probability of the likeliest class.
  """
  pixels = transforms.normalize(images)

  def answers(x):
    x = repeat(x)
    verdict, sown = discriminator.apply({"params": params}, x, labels, mutable="intermediates")
    likeliest = jnp.max(jax.nn.log_softmax(verdict.class_logits), axis=-1)
    # No image sees another: the gradient of a sum holds every image's own.
    return (verdict.logit.sum(), likeliest.sum()), sown["intermediates"]

  _, pull, sown = jax.vjp(answers, pixels, has_aux=True)
  (of_logit,), (of_class,) = pull((1.0, 0.0)), pull((0.0, 1.0))
  (weights,) = sown["transformer"]["layers"]["block"]["attention"]["attention"]
  patch = discriminator.patch
  grid = (len(images), images.shape[1] // patch, images.shape[2] // patch)
  return {
    "attention": jax.vmap(roll_out, in_axes=1)(weights)[:, 1:].reshape(grid),
    "logit": jnp.abs(of_logit).sum(axis=-1),
    "class": jnp.abs(of_class).sum(axis=-1),
  }


def cap(gradient):
  """|gradient| [H, W] cut at its 98 % quantile: few pixels hold most of it, and the others would
  all look black."""
  return np.minimum(gradient, np.quantile(gradient, 0.98))


def overlay(image, heat, interpolation):
  """Heat [h, w] in colours, from its least (black) to its most (yellow), over the grey image,
  uint8 [H, W, 3]."""
  height, width, _ = image.shape
  heat = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=interpolation)
  heat = (heat - heat.min()) / max(np.ptp(heat), 1e-12)
  colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
  grey = image.mean(axis=-1, keepdims=True)
  return (0.25 * grey + 0.75 * colours).astype(np.uint8)
