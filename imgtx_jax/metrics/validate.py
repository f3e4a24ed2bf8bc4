"""Checks of the features that metrics take: shape, number of images, finite values."""

import numpy as np

from imgtx_jax.errors import UserError


def check(name, features, minimum=1, use="a metric"):
  """Returns features [n, D] as a NumPy array.

  Args:
    name: the set's name in error messages.
    features: [n, D].
    minimum: least n.
    use: what needs that many images, for error messages.

  Raises:
    UserError: if features have another shape, too few rows, NaN or infinity.
  """
  features = np.asarray(features)
  if features.ndim != 2:
    raise UserError(
      f"{name}: features have the shape {features.shape}, not [images, width]: pool or flatten them"
    )
  if len(features) < minimum:
    raise UserError(
      f"{name}: {len(features)} images, but {use} needs at least {minimum}: give more images"
    )
  bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
  if len(bad):
    raise UserError(
      f"{name}: {len(bad)} of {len(features)} rows hold NaN or infinity, first row {bad[0]}, "
      "but must be finite: check the images and the network's weights"
    )
  return features


def check_pair(samples, reference, minimum=1, use="a metric"):
  """Checks samples [n, D] and reference [m, D]; returns both as NumPy arrays.

  minimum and use are check's. Raises UserError as check does, and if the widths differ.
  """
  samples = check("samples", samples, minimum, use)
  reference = check("reference", reference, minimum, use)
  check_width("samples", samples.shape[1], "the reference", reference.shape[1])
  return samples, reference


def check_width(name, width, other, expected):
  """Raises UserError unless the width of `name` equals `expected`, the width of `other`."""
  if width != expected:
    raise UserError(
      f"{name}: {width} features an image, but {other} has {expected}: "
      "compute both with one network and layer"
    )
