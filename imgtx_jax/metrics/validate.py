"""What every figure on features of images asks of them."""

import numpy as np

from imgtx_jax.errors import UserError


def check(name, features, least=1, use="a figure"):
  """Features [n, D] as a NumPy array. name: whose they are; least: how many `use` needs.

  Raises UserError on another shape, on too few rows, and on NaN or infinity.
  """
  features = np.asarray(features)
  if features.ndim != 2:
    raise UserError(
      f"{name}: features have the shape {features.shape}, not [images, width]: pool or flatten them"
    )
  if len(features) < least:
    raise UserError(
      f"{name}: {len(features)} images, but {use} needs at least {least}: give more images"
    )
  bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
  if len(bad):
    raise UserError(
      f"{name}: {len(bad)} of {len(features)} rows hold NaN or infinity, first row {bad[0]}, "
      "but must be finite: check the images and the network's weights"
    )
  return features


def check_pair(samples, reference, least=1, use="a figure"):
  """Both sets, [n, D] and [m, D], checked as above; UserError unless they share one width."""
  samples = check("samples", samples, least, use)
  reference = check("reference", reference, least, use)
  check_width("samples", samples.shape[1], "the reference", reference.shape[1])
  return samples, reference


def check_width(name, width, other, expected):
  """UserError unless both widths, those of `name` and of `other`, are the same."""
  if width != expected:
    raise UserError(
      f"{name}: {width} features an image, but {other} has {expected}: "
      "compute both with one network and layer"
    )
