"""imagenet2012 as ArrayRecord, from the official tars, by TFDS's own builder without TensorFlow.

The builder takes little from TensorFlow: files, an exception, and two conversions of images, for
22 training images in CMYK and one PNG. For the time of preparing they come from Python and Pillow.
Shuffling by the names' hashes, shards, features and labels are TFDS's: `tfds.data_source` and this
package read the result by its name.
"""

import contextlib
import io
import os
import resource
import shutil
import tarfile
import types
from pathlib import Path

from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import disk_fault, explain_disk

NAME = "imagenet2012"
TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
# Of the published tars: the splits "train" and "validation".
IMAGES = {"train": 1_281_167, "validation": 50_000}
_OPEN_FILES = 4096  # TFDS shuffles through 1,000 files open at once


def prepare(tars, data_dir, report=print):
  """Writes data_dir/imagenet2012/5.1.0 from the two tars in the folder `tars`; {split: images}.

  That folder appears under its name once it is whole. report: takes lines about what is incomplete.
  Raises UserError for tars that are missing, damaged or not ImageNet's, a set that exists already,
  or a disk that is too small.
  """
  tars, data_dir = Path(tars), Path(data_dir)
  files = _find(tars)
  with _without_tensorflow() as (tfds, make_builder):
    _clear_target(data_dir, report)
    builder = make_builder(data_dir=data_dir, file_format="array_record")
    if builder.data_path.exists():
      raise UserError(
        f"{builder.data_path} is there already: train with --config.data.path={data_dir}, or "
        "delete that folder to prepare it again"
      )
    _check_training(files["train"], builder.info.features["label"].names, report)
    _check_validation(files["validation"], report)
    _check_space(files.values(), data_dir)
    config = tfds.download.DownloadConfig(manual_dir=tars, try_download_gcs=False)
    with _explain(files, data_dir):
      builder.download_and_prepare(download_config=config)
    return {split: builder.info.splits[split].num_examples for split in TARS}


def _find(tars):
  """Returns {split: path} of the two tars in a folder."""
  if not tars.is_dir():
    raise UserError(f"--tars={tars} is no folder: give the one that holds {_both()}")
  missing = [name for name in TARS.values() if not (tars / name).is_file()]
  if missing:
    others = sorted(path.name for path in tars.iterdir() if path.suffix == ".tar")
    held = f" (it holds {', '.join(others[:3])})" if others else ""
    raise UserError(
      f"--tars={tars} has no {' and no '.join(missing)}{held}: put {_both()} there, as "
      "https://image-net.org/download-images names them"
    )
  return {split: tars / name for split, name in TARS.items()}


def _both():
  return " and ".join(TARS.values())


def _members(path):
  """Returns the names in a tar; of the big ones only the headers are read."""
  with _naming_damage(path), tarfile.open(path, "r:") as tar:
    return [member.name for member in tar if member.isfile()]


@contextlib.contextmanager
def _naming_damage(path):
  try:
    yield
  except (tarfile.TarError, EOFError) as error:
    raise UserError(f"{path} is no whole tar ({error}): download it again") from error


def _check_training(path, classes, report):
  names = _members(path)
  known = {f"{name}.tar" for name in classes}
  foreign = [name for name in names if name not in known]
  if foreign or not names:
    held = f"{len(foreign)} of {len(names)} members such as {foreign[0]}" if foreign else "nothing"
    raise UserError(
      f"{path} holds {held}, where ImageNet's has one tar a class ({classes[0]}.tar …): download "
      f"{TARS['train']} from https://image-net.org/download-images"
    )
  if len(names) < len(classes):
    report(f"note: {path} holds {len(names)} of {len(classes)} classes")


def _check_validation(path, report):
  # TFDS gives the labels out by the order of the names: one left out would shift all after it.
  names = sorted(_members(path))
  expected = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(names) + 1)]
  wrong = [name for name, wanted in zip(names, expected, strict=True) if name != wanted]
  if wrong or not 1 <= len(names) <= IMAGES["validation"]:
    raise UserError(
      f"{path} holds {len(names)} files{f', {wrong[0]} out of order' if wrong else ''}, where "
      f"ImageNet's has ILSVRC2012_val_00000001.JPEG to {IMAGES['validation']:08} without a gap: "
      f"download {TARS['validation']} from https://image-net.org/download-images"
    )
  if len(names) < IMAGES["validation"]:
    report(f"note: {path} holds {len(names)} of {IMAGES['validation']} images")


def _clear_target(data_dir, report):
  """Makes data_dir, and names what killed runs left in it."""
  with explain_disk(data_dir):
    data_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted(data_dir.glob(f"{NAME}/incomplete.*")):
      report(f"note: {path} is left of a run that was broken off: delete it to free its space")


def _check_space(files, data_dir):
  # Each shuffled part is deleted once it is in its shard: nothing lies there twice for long.
  needed = int(1.02 * sum(path.stat().st_size for path in files))
  free = shutil.disk_usage(data_dir).free
  if free < needed:
    raise UserError(
      f"--data_dir={data_dir} has {free / 1e9:.1f} GB free, and preparing needs {needed / 1e9:.1f} "
      "GB: free some or name a folder on another disk"
    )


@contextlib.contextmanager
def _explain(files, data_dir):
  """Turns a full disk, and damage within the tars, into a UserError."""
  try:
    with explain_disk(data_dir):
      yield
  except (tarfile.TarError, EOFError) as error:
    raise UserError(
      f"{' or '.join(map(str, files.values()))} holds a damaged tar ({error}): download it again"
    ) from error
  except UserError:
    raise
  except Exception as error:
    reason = disk_fault(error)
    if reason is None:
      raise
    raise UserError(
      f"cannot write to --data_dir={data_dir} ({reason}): free space or name another disk, then "
      "run the same command again"
    ) from error


class _NeverRaisedError(Exception):
  """Stands for exceptions of TensorFlow's files, which Python's never raise."""


@contextlib.contextmanager
def _without_tensorflow():
  """Yields (tensorflow_datasets, imagenet2012's builder), which then do without TensorFlow."""
  import tensorflow_datasets as tfds  # a second, and only this needs it
  from tensorflow_datasets.core import shuffle
  from tensorflow_datasets.core.download import extractor
  from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as builder
  from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

  opened = []

  def open_file(path, mode="r"):
    opened.append(open(path, mode))
    return opened[-1]

  gfile = types.SimpleNamespace(GFile=open_file, exists=os.path.exists, remove=os.remove)
  tensorflow = types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=gfile),
    errors=types.SimpleNamespace(ResourceExhaustedError=_NeverRaisedError),
  )
  changes = [(part, "tf", tensorflow) for part in (builder, imagenet_common, extractor, shuffle)]
  changes += [(tfds.core.utils, name, _to_rgb_jpeg) for name in ("jpeg_cmyk_to_rgb", "png_to_jpeg")]
  before = [(part, name, vars(part)[name]) for part, name, _ in changes]
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    for part, name, value in changes:
      setattr(part, name, value)
    _raise_open_files(*limits)
    yield tfds, builder.Builder
  finally:
    for file in opened:  # those of a shuffle that broke off
      with contextlib.suppress(OSError):
        file.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for part, name, value in before:
      setattr(part, name, value)


def _raise_open_files(soft, hard):
  if soft != resource.RLIM_INFINITY:
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _to_rgb_jpeg(data, quality=100):
  """Returns encoded bytes as an RGB JPEG; as TFDS, which decodes and encodes at that quality."""
  encoded = io.BytesIO()
  with Image.open(io.BytesIO(data)) as image:
    image.convert("RGB").save(encoded, "JPEG", quality=quality)
  return encoded.getvalue()
