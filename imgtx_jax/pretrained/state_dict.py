"""Reads published weight files, PyTorch's .pt and .safetensors, as {name: Weight}.

No code in a file is run. Weights are read lazily, so that they need not fit into memory twice.
"""

import argparse
import functools
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax  # noqa: F401  teaches NumPy bfloat16, which safetensors reads by that name
import numpy as np
import safetensors

from imgtx_jax.errors import UserError, first_line

# Under which keys training tools keep a state dict, and what they put before its names.
WRAPPERS = (
  *("module", "_orig_mod", "model", "ema", "state_dict", "model_state_dict"),
  *("ema_model", "model_ema", "params_ema", "params", "net", "network"),
)
_DEEPEST = 4  # dicts in each other
_READABLE = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


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


def read_file(path, wrappers, say=None):
  """Returns {name: Weight} of a file.

  What training tools wrap a state dict in is taken off: dicts that hold it under a key, and keys
  that all begin with "module.", "_orig_mod." and the like. Of several state dicts in one file, such
  as the weights and their average, the one that `wrappers` names first is taken.

  Args:
    path: of a .safetensors file or a PyTorch checkpoint.
    wrappers: keys under which a file may hold the state dict, the best first; WRAPPERS come after.
    say: takes a line on what was taken out of which wrappers, if there were any.

  Raises:
    UserError: one line, without the path, if the file cannot be read.
  """
  if not Path(path).is_file():
    raise UserError("there is no such file; give a .pt or .safetensors file")
  wrappers = tuple(dict.fromkeys((*wrappers, *WRAPPERS)))
  read = _read_safetensors if Path(path).suffix == ".safetensors" else _read_torch
  weights, taken = read(path, wrappers)
  weights, stripped = strip(weights, wrappers)
  if say and taken + stripped:
    say(f"taken: {' → '.join(taken + stripped)} ({len(weights)} arrays)")
  return weights


def strip(weights, wrappers):
  """Returns ({name: Weight} without the prefixes that wrappers put before the names, [the prefixes,
  as "module.*"])."""
  stripped = []
  while True:
    first = Counter(str(name).partition(".")[0] for name in weights if "." in str(name))
    found = [word for word in wrappers if first[word]]
    # A few entries beside them, such as the number of updates, are none of the weights.
    if not found or sum(first[word] for word in found) < 0.9 * len(weights):
      return weights, stripped
    start = f"{found[0]}."
    weights = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
    stripped.append(f"{start}*")


def _finite(name, array):
  """Returns the array; raises UserError if it holds NaN or infinity."""
  if not np.isfinite(array).all():
    raise UserError(f"{name} holds NaN or infinity: the weights are of a run that diverged")
  return array


def _read_safetensors(path, wrappers):
  """Returns ({name: Weight}, []) of a .safetensors file, whose names are never nested."""
  del wrappers
  try:
    file = safetensors.safe_open(path, framework="np")
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"no whole safetensors file ({first_line(error)}); fetch it again") from error

  def read(name):
    return _finite(name, np.asarray(file.get_tensor(name), np.float32))

  weights = {}
  for name in file.keys():
    if (kind := file.get_slice(name).get_dtype()) not in _READABLE:
      raise UserError(f"{name} is stored as {kind}: convert it to float32 or bfloat16 first")
    weights[name] = Weight(tuple(file.get_slice(name).get_shape()), functools.partial(read, name))
  return weights, []


def _read_torch(path, wrappers):
  """Returns ({name: Weight}, [the keys that held them]) of a PyTorch checkpoint."""
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
  state, taken = _unwrap(content, wrappers)
  alien = sorted(str(k) for k, v in state.items() if not isinstance(v, torch.Tensor))
  if alien:
    raise UserError(
      f"no state dict: {', '.join(alien[:3])} is no array there, and none of "
      f"{', '.join(wrappers)} holds one"
    )
  state = {str(name): x for name, x in state.items()}

  # .float() only on reading: nothing of a mapped file is in memory yet.
  def read(name):
    return _finite(name, state[name].detach().float().numpy())

  weights = {n: Weight(tuple(x.shape), functools.partial(read, n)) for n, x in state.items()}
  return weights, taken


def _unwrap(content, wrappers):
  """Returns (the state dict of a checkpoint's content, [the keys that held it]); see read_file."""
  taken = []
  while isinstance(content, dict):
    found = [key for key in wrappers if isinstance(content.get(key), dict)]
    if not found or len(taken) == _DEEPEST:
      return content, taken
    content = content[found[0]]
    taken.append(found[0])
  raise UserError(f"no state dict but a {type(content).__name__}")
