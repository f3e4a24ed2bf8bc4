"""Published weight files as {name: Weight}: PyTorch's .pt, and .safetensors; no code in them runs.

Nothing is copied until a Weight is read, so that a file's weights need not fit into memory twice.
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
  """One array of a file: its shape, and read() → float32 NumPy array, whatever its type there."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def in_memory(arrays):
  """{name: Weight} of NumPy arrays."""
  return {
    name: Weight(x.shape, functools.partial(np.asarray, x, np.float32))
    for name, x in arrays.items()
  }


def read_file(path, wrappers):
  """{name: Weight} of a file; UserError, in one line without the path, if it cannot be read.

  wrappers: names under which a PyTorch checkpoint may hold the state dict, the best first; without
  any of them the whole file must be one.
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
    import torch  # an extra, and only this format needs it
  except ImportError as error:
    raise UserError(
      "reading a PyTorch file needs torch: pip install 'imgtx_jax[convert]', or give .safetensors"
    ) from error
  try:
    # Training checkpoints hold their command line beside the weights: a class without behaviour.
    with torch.serialization.safe_globals([argparse.Namespace]):
      # Before PyTorch 1.6 files were no zip archives, and such cannot be mapped.
      mapped = zipfile.is_zipfile(path)
      content = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
  except MemoryError:
    raise  # not the file's fault
  except Exception as error:  # torch's reader fails in many ways on what is no pickle
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
      raise UserError(
        f"refused, for it holds more than weights: building its {foreign[1]} could run code of its "
        "author's; give a file of weights alone"
      ) from error
    is_advice = isinstance(error, pickle.UnpicklingError)  # to trust the file, in many lines
    reason = "not a pickle" if is_advice else first_line(error)
    raise UserError(f"no whole PyTorch file ({reason}); fetch it again") from error
  state = _unwrap(content, wrappers)
  alien = sorted(str(k) for k, v in state.items() if not isinstance(v, torch.Tensor))
  if alien:
    raise UserError(
      f"no state dict: {', '.join(alien[:3])} is no array there, and none of "
      f"{', '.join(wrappers)} holds one"
    )
  # No .float() before it is asked for: of a mapped file nothing is in memory yet.
  return {
    name: Weight(tuple(x.shape), functools.partial(lambda x: x.detach().float().numpy(), x))
    for name, x in state.items()
  }


def _unwrap(content, wrappers):
  if not isinstance(content, dict):
    raise UserError(f"no state dict but a {type(content).__name__}")
  found = [content[name] for name in wrappers if isinstance(content.get(name), dict)]
  return found[0] if found else content
