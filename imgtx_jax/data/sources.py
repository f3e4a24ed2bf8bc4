"""Where images come from: the embedded emoji, a folder of class folders, folders of images without
classes, or a TFDS data set.

A source is a picklable sequence: source[i] is {"image": encoded bytes or uint8 [H, W, 3],
"label": int, "name": str}. It also counts what turned out to be unreadable (source.corrupt).

The embedded data set (emoji/noto32.npz, 3,781 Noto emoji, Apache-2.0) was made from 64x64
renderings on white: each 32x32 pixel is the rounded mean of four, and the category "Component"
(5 images, too few to learn or to hold out) is left out. About 10 % of the base names of each
category (the name before "~", which marks skin tones) are held out: base names with an identical
image anywhere (flags of dependencies, families) form a group, groups are ordered by the SHA-256
of their first name, and whole groups are taken until the share is reached. The file was written
once with zip level 9 and holds image, label, name, class_name, and validation (the held-out mark).
"""

import abc
import functools
import hashlib
import importlib.resources
import os

import numpy as np

from imgtx_jax.data.unreadable import CorruptImages
from imgtx_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = {"train", "val", "validation", "test"}
HELD_OUT = 0.05  # of each class, where a folder or a TFDS data set has no validation split


def open_source(name, *, split, path="", seed=0):
  """The source called "emoji", "folder", "images" or "tfds:NAME"; split is "train" or "validation".

  path is the folder ("images": or several, with commas), or TFDS's data_dir; seed chooses the
  held-out part of a folder without one.
  """
  if split not in ("train", "validation"):
    raise ValueError(f'split is "train" or "validation", not {split!r}')
  if name == "emoji":
    return _open_emoji(split)
  if name == "folder":
    return _open_folder(path, split, seed)
  if name == "images":
    return _open_images(path, split, seed)
  if name.startswith("tfds:"):
    return _open_tfds(name.removeprefix("tfds:"), path, split)
  raise UserError(f'unknown data source "{name}": use "emoji", "folder", "images" or "tfds:NAME"')


def open_files(path):
  """Every image in a folder and below it, in the order of their paths, without classes."""
  files = sorted(os.path.normpath(file) for file in _images(path, ""))
  if not files:
    raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)}): name a folder of images")
  return FolderSource(path, files, np.zeros(len(files)), [""])


def _open_images(path, split, seed):
  """The images in each of the folders in path and below it, 5 % of each held out; one class. A
  folder that is named twice counts twice."""
  folders = [folder.strip() for folder in path.split(",") if folder.strip()]
  if not folders:
    raise UserError('the data source "images" needs a path: a folder of images, or several')
  paths = []
  for folder in folders:
    files = open_files(folder).files
    chosen = _hold_out(files, [0] * len(files), split, seed)
    paths += [os.path.join(folder, files[i]) for i in chosen]
  if not paths:
    raise UserError(f"{path} has one image, none to hold out: add images")
  return FolderSource("", paths, np.zeros(len(paths)), [""])


class Source(abc.ABC):
  """A sequence of examples with class names."""

  def __init__(self, class_names):
    self.class_names = [str(c) for c in class_names]
    self.corrupt = CorruptImages()

  @property
  def num_classes(self):
    return len(self.class_names)

  @abc.abstractmethod
  def __len__(self): ...

  @abc.abstractmethod
  def __getitem__(self, index): ...

  @abc.abstractmethod
  def name(self, index):
    """What to call an example, readable or not."""


class ArraySource(Source):
  """Images in memory: images uint8 [n, H, W, 3], labels [n], names [n]."""

  def __init__(self, images, labels, names, class_names):
    super().__init__(class_names)
    self.images, self.labels, self.names = images, labels, names

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    image, label = self.images[index], int(self.labels[index])
    return {"image": image, "label": label, "name": self.name(index)}

  def name(self, index):
    return str(self.names[index])


@functools.cache
def _emoji():
  file = importlib.resources.files("imgtx_jax.data") / "emoji" / "noto32.npz"
  with file.open("rb") as stream, np.load(stream) as arrays:
    return {key: arrays[key] for key in arrays}


def _open_emoji(split):
  emoji = _emoji()
  chosen = emoji["validation"] == (split == "validation")
  columns = (emoji[key][chosen] for key in ("image", "label", "name"))
  return ArraySource(*columns, emoji["class_name"])


class FolderSource(Source):
  """Encoded images root/files[i], where files[i] is "class/…/image.jpg" and labels[i] its class."""

  def __init__(self, root, files, labels, class_names):
    super().__init__(class_names)
    self.root, self.files, self.labels = root, files, np.asarray(labels, np.int32)

  def __len__(self):
    return len(self.files)

  def __getitem__(self, index):
    with open(os.path.join(self.root, self.files[index]), "rb") as file:
      data = file.read()
    return {"image": data, "label": int(self.labels[index]), "name": self.name(index)}

  def name(self, index):
    return self.files[index]


def _open_folder(path, split, seed):
  """path/train and path/val (or path/validation), or class folders only (5 % held out)."""
  if not path:
    raise UserError('the data source "folder" needs a path to a folder of class folders')
  if not os.path.isdir(path):
    raise UserError(f"{path} is not a folder: give the path of a folder of class folders")
  train, val = os.path.join(path, "train"), os.path.join(path, "val")
  if not os.path.isdir(val):
    val = os.path.join(path, "validation")
  # A class may be called "train": a split holds class folders, a class folder holds images.
  has_train = bool(_folders(train))
  names = set(_folders(path))
  if not has_train and names and (names <= SPLIT_FOLDERS or _folders(val)):
    raise UserError(f"{train} has no class folder: put the images into {train}/CLASS/")
  if has_train and os.path.isdir(val):
    _check_same_classes(train, val)
    return FolderSource(*_list_classes(train if split == "train" else val))
  root, files, labels, class_names = _list_classes(train if has_train else path)
  chosen = _hold_out(files, labels, split, seed)
  if not chosen:
    raise UserError(f"{root} has one image a class, none to hold out: add images, or {path}/val")
  return FolderSource(root, [files[i] for i in chosen], [labels[i] for i in chosen], class_names)


def _folders(path):
  if not os.path.isdir(path):
    return []
  with os.scandir(path) as entries:
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))


def _images(root, folder):
  """Paths of the images in root/folder and below, relative to root, sorted."""
  found = []
  for where, _, names in os.walk(os.path.join(root, folder), followlinks=True):
    inside = os.path.relpath(where, root)
    wanted = (n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))
    found += [os.path.join(inside, n) for n in wanted]
  return sorted(found)


def _list_classes(root):
  class_names = _folders(root)
  if not class_names:
    raise UserError(f"{root} has no class folder: put the images into {root}/CLASS/")
  files, labels, empty = [], [], []
  for label, class_name in enumerate(class_names):
    found = _images(root, class_name)
    files += found
    labels += [label] * len(found)
    empty += [] if found else [class_name]
  if empty:
    raise UserError(
      f"{root} has {len(empty)} of {len(class_names)} classes without an image"
      f" ({', '.join(SUFFIXES)}): remove or fill {', '.join(empty[:5])}"
    )
  return root, files, labels, class_names


def _check_same_classes(train, val):
  ours, theirs = set(_folders(train)), set(_folders(val))
  if ours != theirs:
    lone = [f"{c} only in {train}" for c in sorted(ours - theirs)[:3]]
    lone += [f"{c} only in {val}" for c in sorted(theirs - ours)[:3]]
    raise UserError(
      f"train has {len(ours)} classes and validation {len(theirs)}, and both need the same:"
      f" {'; '.join(lone)}"
    )


def _hold_out(files, labels, split, seed):
  """Indices of one side: in each class the 5 % (at least one of two) with the smallest hashes."""
  by_class = {}
  for index, label in enumerate(labels):
    by_class.setdefault(label, []).append(index)
  chosen = []
  for indices in by_class.values():
    indices.sort(key=lambda i: hashlib.sha256(f"{seed}:{files[i]}".encode()).digest())
    share = max(1, round(HELD_OUT * len(indices))) if len(indices) > 1 else 0
    chosen += indices[share:] if split == "train" else indices[:share]
  return sorted(chosen)


class TfdsSource(Source):
  """Encoded images of a TFDS data source, read without TensorFlow."""

  def __init__(self, examples, image_key, label_key, title, class_names):
    super().__init__(class_names)
    self.examples, self.image_key, self.label_key = examples, image_key, label_key
    self.title = title

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    example = self.examples[index]
    image, label = example[self.image_key], int(example[self.label_key])
    return {"image": image, "label": label, "name": self.name(index)}

  def name(self, index):
    return f"{self.title}#{index}"


def _open_tfds(name, data_dir, split):
  import tensorflow_datasets as tfds  # a second, and only this source needs it

  where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  command = f"tfds build {name} --file_format=array_record --data_dir={where}"
  needs = " (this step needs tensorflow, training does not)"
  if name.split(":")[0] == "imagenet2012":
    command, needs = f"python -m imgtx_jax.convert imagenet --tars DIR --data_dir {where}", ""
  remedy = f"prepare it once with `{command}`{needs} or give its data_dir as the path"
  try:
    builder = tfds.builder(name, data_dir=data_dir or None)
  except (ValueError, AssertionError, ImportError) as error:  # unknown name, version or config
    reason = str(error).strip().splitlines()[0]
    raise UserError(f'no TFDS data set "{name}" in {where} ({reason}): {remedy}') from error
  if not builder.is_prepared():
    raise UserError(f'the TFDS data set "{name}" is not prepared in {where}: {remedy}')
  splits, features = list(builder.info.splits), builder.info.features
  # What it is supervised by comes first: there may be coarser labels beside, and masks.
  keys = [k for k in builder.info.supervised_keys or () if k in features] + list(features)
  images = [k for k in keys if isinstance(features[k], tfds.features.Image)]
  labels = [k for k in keys if isinstance(features[k], tfds.features.ClassLabel)]
  if not images or not labels or "train" not in splits:
    raise UserError(
      f'the TFDS data set "{name}" has features {sorted(features)} and splits {splits}:'
      " use one with an image, a class label and a train split"
    )
  part = _tfds_split(split, splits)
  try:
    skip = {images[0]: tfds.decode.SkipDecoding()}
    examples = builder.as_data_source(split=part, decoders=skip)
  except NotImplementedError as error:  # TFRecord files
    message = f'the TFDS data set "{name}" is not stored as array_record: {remedy}'
    raise UserError(message) from error
  class_names = features[labels[0]].names
  return TfdsSource(examples, images[0], labels[0], f"{name}/{part}", class_names)


def _tfds_split(split, splits):
  held_out = [s for s in ("validation", "test") if s in splits]
  if held_out:
    return "train" if split == "train" else held_out[0]
  percent = round(100 * (1 - HELD_OUT))
  return f"train[:{percent}%]" if split == "train" else f"train[{percent}%:]"
