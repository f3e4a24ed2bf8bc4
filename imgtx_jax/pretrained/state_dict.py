"""Reads published weight files, PyTorch's .pt and .safetensors, as {name: Weight}.

No code in a file is run. Weights are read lazily, so that they need not fit into memory twice.
"""

import argparse
import functools
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax  # noqa: F401  teaches NumPy bfloat16, which safetensors reads by that name
import numpy as np
import safetensors

from imgtx_jax.errors import UserError, first_line


class Weight(NamedTuple):
  """One array of a file: its shape, and read(), which returns it as a float32 NumPy array."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def in_memory(arrays):
  """Returns {name: Weight} for a dict of NumPy arrays."""
  return {
    name: Weight(x.shape, functools.partial(np.asarray, x, np.float32))
    for name, x in arrays.items()
  }


def read_file(path, wrappers):
  """Returns {name: Weight} of a file.

  Args:
    path: of a .safetensors file or a PyTorch checkpoint.
    wrappers: keys under which a PyTorch checkpoint may hold the state dict; the first present is
      taken. If none is present, the whole file must be a state dict.

  Raises:
    UserError: one line, without the path, if the file cannot be read.
  """
  if not Path(path).is_file():
    raise UserError("there is no such file; give a .pt or .safetensors file")
  if Path(path).suffix == ".safetensors":
    return _read_safetensors(path)
  return _read_torch(path, wrappers)


def _read_safetensors(path):
  try:
    file = safetensors.safe_open(path, framework="np")
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"no whole safetensors file ({first_line(error)}); fetch it again") from error

  def read(name):
    return np.asarray(file.get_tensor(name), np.float32)

  return {
    name: Weight(tuple(file.get_slice(name).get_shape()), functools.partial(read, name))
    for name in file.keys()
  }


def _read_torch(path, wrappers):
  try:
    import torch  # an optional dependency that only this format needs
  except ImportError as error:
    raise UserError(
      "reading a PyTorch file needs torch: pip install 'imgtx_jax[convert]', or give .safetensors"
    ) from error
  try:
    # Training checkpoints hold their command line beside the weights: a harmless class.
    with torch.serialization.safe_globals([argparse.Namespace]):
      # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
      mapped = zipfile.is_zipfile(path)
      content = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
  except MemoryError:
    raise  # not the file's fault
  except Exception as error:  # torch's reader raises many types on damaged files
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
      raise UserError(
        f"refused, for it holds more than weights: building its {foreign[1]} could run code of its "
        "author's; give a file of weights alone"
      ) from error
    # Its text is long and advises to trust the file.
    is_advice = isinstance(error, pickle.UnpicklingError)
    reason = "not a pickle" if is_advice else first_line(error)
    raise UserError(f"no whole PyTorch file ({reason}); fetch it again") from error
  state = _unwrap(content, wrappers)
  alien = sorted(str(k) for k, v in state.items() if not isinstance(v, torch.Tensor))
  if alien:
    raise UserError(
      f"no state dict: {', '.join(alien[:3])} is no array there, and none of "
      f"{', '.join(wrappers)} holds one"
    )
  # .float() only on reading: nothing of a mapped file is in memory yet.
  return {
    name: Weight(tuple(x.shape), functools.partial(lambda x: x.detach().float().numpy(), x))
    for name, x in state.items()
  }


def _unwrap(content, wrappers):
  """Returns the state dict of a checkpoint's content; see read_file."""
  if not isinstance(content, dict):
    raise UserError(f"no state dict but a {type(content).__name__}")
  found = [content[name] for name in wrappers if isinstance(content.get(name), dict)]
  return found[0] if found else content
