"""Heat maps of what a discriminator's answers depend on: attention roll-out and input gradients.

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
  """Returns the Discriminator in float32 and plain attention.

  All of its gradients exist then, and its attention weights can be read.
  """
  block = dataclasses.replace(discriminator.block, attention_kernel="xla", remat="none")
  return discriminator.clone(dtype=jnp.float32, block=block)


def roll_out(weights):
  """Returns attention roll-out (arXiv:2005.00928) of the first token, [T], of sum 1.

  weights: attention [L, heads, T, T] of all layers. Half of every layer is the residual branch.
  """
  size = weights.shape[-1]
  row = jnp.zeros(size).at[0].set(1.0)
  for layer in weights.mean(axis=1)[::-1]:
    row = 0.5 * (row + jnp.matmul(row, layer, precision="highest"))
  return row


def saliency_maps(discriminator, params, images, labels, repeat=lambda x: x):
  """Returns saliency maps of images under a discriminator.

  Args:
    discriminator: of exact().
    params: its parameters.
    images: uint8 [B, H, W, 3].
    labels: int [B].
    repeat: images [B, H, W, 3] → the discriminator's input (Adversary.repeat).

  Returns:
    A dict: attention [B, h, w], the attention of [cls] on every patch (what is missing to 1 is its
    own); logit [B, H, W], |gradient| of the logit by the pixels, summed over channels; class
    [B, H, W], the same of the log-probability of the likeliest class.
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
  """Returns |gradient| [H, W] cut at its 98 % quantile, so that few pixels do not hide the rest."""
  return np.minimum(gradient, np.quantile(gradient, 0.98))


def overlay(image, heat, interpolation):
  """Returns the grey image under a heat map in colours, uint8 [H, W, 3].

  heat: [h, w], shown from its least (black) to its most (yellow); image: uint8 [H, W, 3].
  """
  height, width, _ = image.shape
  heat = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=interpolation)
  heat = (heat - heat.min()) / max(np.ptp(heat), 1e-12)
  colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
  grey = image.mean(axis=-1, keepdims=True)
  return (0.25 * grey + 0.75 * colours).astype(np.uint8)
