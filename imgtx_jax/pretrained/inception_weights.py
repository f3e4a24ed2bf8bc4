"""Weights of FID's InceptionV3: converts the published .pth to a .safetensors file and reads it.

`python -m imgtx_jax.convert inception` writes the file. Its metadata hold the sha256 of the source.
"""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from imgtx_jax.errors import UserError
from imgtx_jax.io import local_paths
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.pretrained import state_dict
from imgtx_jax.pretrained.batch_norm_folding import fold
from imgtx_jax.pretrained.inception import shapes

FILE = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = "6726825d"  # the first digits of the published file's sha256, also in its name
_KIND = "imgtx_jax inception"


def default_path():
  """Returns the path of the converted weights in the cache folder; None if there is no folder."""
  folder = local_paths.cache_folder()
  return folder and folder / "inception.safetensors"


def convert(weights):
  """Converts {name: Weight} of the published file to the params of inception_features.

  Raises UserError if a weight is missing, left over, or has another shape.
  """
  names = {name: (f"{name}.conv", f"{name}.bn") for name in shapes()} | {"fc": ("fc", None)}
  return fold(weights, shapes(), names, "FID's InceptionV3")


def write(path, params, source):
  """Writes converted params to path.

  source: {"source_file", "source_sha256"} of the published file, for the metadata.
  """
  flat = {f"{layer}.{part}": x for layer, parts in params.items() for part, x in parts.items()}
  write_atomically(path, safetensors.numpy.save(flat, {"kind": _KIND} | source))


def load(path=None):
  """Reads converted params; returns (params, sha256 of the published file).

  path: default_path() if None. Raises UserError with the command to run if there is no such file.
  """
  path = path or default_path()
  if not path:
    raise UserError("there is no home folder here: set IMGTX_CACHE to a folder for weights")
  path = Path(path)
  remedy = f"python -m imgtx_jax.convert inception {FILE}"
  if not path.is_file():
    raise UserError(
      f"FID needs InceptionV3's weights, and there is no {path}: fetch {FILE} from the releases of "
      f"github.com/mseitzer/pytorch-fid, then {remedy}"
    )
  try:
    weights = state_dict.read_file(path, ())
    with safetensors.safe_open(path, framework="np") as file:
      source = file.metadata() or {}
  except UserError as error:
    raise UserError(f"{path}: {error}, or {remedy}") from error
  wanted = {}
  for layer, shape in shapes().items():
    wanted |= {f"{layer}.kernel": shape, f"{layer}.bias": shape[-1:]}
  found = {name: weight.shape for name, weight in weights.items()}
  if source.get("kind") != _KIND or found != wanted:
    raise UserError(f"{path} holds something else than converted InceptionV3 weights: {remedy}")
  read = {name: np.asarray(weight.read()) for name, weight in weights.items()}
  params = {
    layer: {part: read[f"{layer}.{part}"] for part in ("kernel", "bias")} for layer in shapes()
  }
  return params, source["source_sha256"]
