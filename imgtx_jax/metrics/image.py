"""Measures on pairs of images [B, H, W, 3] in [-1, 1]."""

import jax.numpy as jnp
import numpy as np


def psnr(x, y):
  """Peak signal-to-noise ratio in dB of each pair; [B]. Values are clipped to [-1, 1] first."""
  error = jnp.mean((jnp.clip(x, -1, 1) - jnp.clip(y, -1, 1)) ** 2, axis=(1, 2, 3))
  return -10.0 * jnp.log10(jnp.maximum(error, 1e-10) / 4.0)


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
