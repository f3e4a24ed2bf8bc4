"""Folds the batch norms of a PyTorch state dict into its convolutions, for inference."""

import numpy as np

from imgtx_jax.errors import UserError

_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILON = 1e-3  # of InceptionV3 and EfficientNet-lite0, as in their TensorFlow originals


def fold(weights, shapes, names, network):
  """Returns folded parameters {layer: {"kernel": HWIO, "bias": [C]}}, float32 NumPy arrays.

  Args:
    weights: {name: Weight} of the state dict; each must be used exactly once.
    shapes: {layer: HWIO shape}.
    names: {layer: (convolution's name, batch norm's name or None)}. A layer without batch norm is
      dense and has a bias.
    network: the network's name in error messages.

  Raises:
    UserError: if a weight is missing, left over, or has another shape.
  """
  steps = ".num_batches_tracked"  # used in training only
  weights = {name: weight for name, weight in weights.items() if not name.endswith(steps)}
  _check(weights, _wanted(shapes, names), network)
  params = {}
  for layer, (convolution, norm) in names.items():
    kernel = weights.pop(f"{convolution}.weight").read()
    if norm is None:
      bias = weights.pop(f"{convolution}.bias").read()
      params[layer] = {"kernel": kernel.T[None, None].copy(), "bias": bias}
      continue
    gain, bias, mean, variance = (weights.pop(f"{norm}.{part}").read() for part in _NORM)
    scale = gain.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _EPSILON)
    params[layer] = {
      "kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0) * scale, np.float32),
      "bias": (bias - mean * scale).astype(np.float32),
    }
  return params


def _wanted(shapes, names):
  """Returns {name in the state dict: shape}."""
  wanted = {}
  for layer, (convolution, norm) in names.items():
    h, w, inputs, outputs = shapes[layer]
    if norm is None:
      wanted |= {f"{convolution}.weight": (outputs, inputs), f"{convolution}.bias": (outputs,)}
    else:
      wanted[f"{convolution}.weight"] = (outputs, inputs, h, w)
      wanted |= {f"{norm}.{part}": (outputs,) for part in _NORM}
  return wanted


def _check(weights, wanted, network):
  for what, names in (
    ("missing weights", sorted(wanted.keys() - weights.keys())),
    ("weights without a place", sorted(weights.keys() - wanted.keys())),
  ):
    if names:
      more = f" and {len(names) - 3} more" if len(names) > 3 else ""
      raise UserError(f"{what}: {', '.join(names[:3])}{more}; not the file of {network}")
  for name, shape in wanted.items():
    if weights[name].shape != shape:
      raise UserError(
        f"{name} is {list(weights[name].shape)}, and {list(shape)} in {network}; give its file"
      )
