"""Sources of images: the embedded emoji, class folders, folders without classes, TFDS data sets.

A source is a picklable sequence: source[i] is {"image": encoded bytes or uint8 [H, W, 3],
"label": int, "name": str}. source.corrupt counts its unreadable images.

The embedded data set (emoji/noto32.npz, 3,781 Noto emoji, Apache-2.0) was made from 64 × 64
renderings on white. Each of its 32 × 32 pixels is the rounded mean of four. The category
"Component" (5 images, too few to learn or to hold out) is left out. About 10 % of the base names of
each category are held out, where a base name is the name before "~", which marks skin tones. Base
names with an identical image (flags of dependencies, families) form a group. Groups are ordered by
the SHA-256 of their first name, and whole groups are taken until the fraction is reached. The file
was written once with zip level 9 and holds image, label, name, class_name and validation (whether
the image is held out).
"""

import abc
import functools
import hashlib
import importlib.resources
import os

import numpy as np

from imgtx_jax.data import folders
from imgtx_jax.data.unreadable import CorruptImages
from imgtx_jax.errors import UserError

HELD_OUT = 0.05  # fraction of each class if a folder or a TFDS data set has no validation split
FEW = 10  # a class with fewer images is hardly learned
_SHOWN = 5  # names in a message


def open_source(name, *, split, path="", seed=0, key="config.data"):
  """Opens a source of images.

  Args:
    name: "emoji", "folder", "images" or "tfds:NAME".
    split: "train" or "validation".
    path: the folder ("images": one or several, separated by commas), or TFDS's data_dir.
    seed: chooses the held-out images of a folder without a validation split.
    key: prefix of the config keys .source and .path, for messages.

  Returns:
    A Source.

  Raises:
    UserError: if there is no such data.
  """
  if split not in ("train", "validation"):
    raise ValueError(f'split is "train" or "validation", not {split!r}')
  if name == "emoji":
    return _open_emoji(split)
  if name == "folder":
    return _open_folder(path, split, seed, f"{key}.path")
  if name == "images":
    return _open_images(path, split, seed, f"{key}.path")
  if name.startswith("tfds:"):
    return _open_tfds(name.removeprefix("tfds:"), path, split)
  raise UserError(
    f'{key}.source: unknown data source "{name}": use "emoji", "folder", "images" or "tfds:NAME"'
  )


def open_files(path, key=""):
  """Opens all images in and below a folder, sorted by path, as a Source of one class.

  key: the name of the path in messages. Raises UserError if there is no image.
  """
  name = f"{key}={path}" if key else path
  if not os.path.isdir(path):
    raise UserError(f"{name} holds no image, for it is no folder: name a folder of images")
  files, notes = folders.list_images(path)
  if not files:
    left = f" ({notes[0]})" if notes else ""
    raise UserError(f"{name} holds no image{left}: name a folder of images, such as .jpg or .png")
  return FolderSource(path, files, np.zeros(len(files)), [""], notes=notes)


def describe(title, training, held_out):
  """Describes the data of a run in lines of text: numbers of images, classes, and notes.

  Args:
    title: start of each line.
    training: Source of the training split.
    held_out: Source of the validation split.
  """
  names, classes = training.class_names, ""
  if names != [""]:
    classes = f" of {len(names)} classes for training ({_some(names)})"
  counts = training.class_counts() if classes else None
  few = [name for name, count in zip(names, counts or (), strict=False) if count < FEW]
  notes = [*training.notes, *held_out.notes]
  if few:
    notes = [f"{len(few)} classes have under {FEW} images for training: {_some(few)}", *notes]
  images = f"{len(training):,} images{classes or ' for training'}"
  lines = [f"{title}: {images}, {len(held_out):,} held out"]
  return lines + [f"{title}: note: {note}" for note in dict.fromkeys(notes)]


def _some(names):
  return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _open_images(path, split, seed, key):
  """Opens the images in and below each folder of path, 5 % of each held out, of one class.

  A folder that is named twice counts twice.
  """
  paths_given = split_paths(path)
  if not paths_given:
    raise UserError(f'the data source "images" needs a path, {key}: a folder of images, or several')
  paths, identities, notes = [], [], []
  for number, folder in enumerate(paths_given):
    source = open_files(folder, key)
    files, notes = source.files, notes + source.notes
    chosen = _hold_out(files, [0] * len(files), split, seed)
    paths += [os.path.join(folder, files[i]) for i in chosen]
    identities += [f"{number}/{files[i]}" for i in chosen]
  if not paths:
    raise UserError(f"{path} has one image, none to hold out: add images")
  return FolderSource("", paths, np.zeros(len(paths)), [""], identities, notes)


def split_paths(text):
  """Splits paths at commas; a single folder may have a comma in its name."""
  if os.path.isdir(text):
    return [text]
  return [folder.strip() for folder in text.split(",") if folder.strip()]


class Source(abc.ABC):
  """A sequence of examples with class names. notes: lines about files that are not used."""

  def __init__(self, class_names, notes=()):
    self.class_names = [str(c) for c in class_names]
    self.notes = list(notes)
    self.corrupt = CorruptImages()

  @property
  def num_classes(self):
    """Returns the number of classes."""
    return len(self.class_names)

  @abc.abstractmethod
  def __len__(self): ...

  @abc.abstractmethod
  def __getitem__(self, index): ...

  @abc.abstractmethod
  def name(self, index):
    """Returns the name of an example, readable or not."""

  def identity(self, index):
    """Returns a string that identifies an example independently of the data's location.

    It is the name, except for files whose names contain their folders.
    """
    return self.name(index)

  def digest(self):
    """Returns the SHA-256, in hexadecimal, of the class names and all identities, in order."""
    names = hashlib.sha256("\n".join(self.class_names).encode())
    for index in range(len(self)):
      names.update(f"\n{self.identity(index)}".encode())
    return names.hexdigest()

  def class_counts(self):
    """Returns the number of examples of each class, [K]; None if only reading would tell."""
    labels = getattr(self, "labels", None)
    if labels is None:
      return None
    return np.bincount(labels, minlength=self.num_classes).tolist()


class ArraySource(Source):
  """A source of images in memory: images uint8 [n, H, W, 3], labels int [n], names [n]."""

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
  """A source of the encoded images root/files[i] with class labels[i], int [n].

  identities: see Source.identity; by default the files.
  """

  def __init__(self, root, files, labels, class_names, identities=None, notes=()):
    super().__init__(class_names, notes)
    self.root, self.files, self.labels = root, files, np.asarray(labels, np.int32)
    self._identities = files if identities is None else identities

  def __len__(self):
    return len(self.files)

  def __getitem__(self, index):
    with open(os.path.join(self.root, self.files[index]), "rb") as file:
      data = file.read()
    return {"image": data, "label": int(self.labels[index]), "name": self.name(index)}

  def name(self, index):
    return folders.readable(self.files[index])

  def identity(self, index):
    return folders.readable(self._identities[index])


def _open_folder(path, split, seed, key):
  """Opens a folder of class folders, or of splits of class folders; see data/folders.py."""
  if not path:
    raise UserError(f'the data source "folder" needs a path, {key}, to a folder of class folders')
  if not os.path.isdir(path):
    raise UserError(f"{key}={path} is not a folder: give the path of a folder of class folders")
  root, val, notes = folders.find_splits(path)
  if val:
    folders.check_same_classes(root, val)
    where = root if split == "train" else val
    files, labels, class_names, more = folders.list_classes(where)
    return FolderSource(where, files, labels, class_names, notes=notes + more)
  files, labels, class_names, more = folders.list_classes(root)
  chosen = _hold_out(files, labels, split, seed)
  if not chosen:
    raise UserError(f"{root} has one image a class, none to hold out: add images, or {path}/val")
  files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
  return FolderSource(root, files, labels, class_names, notes=notes + more)


def _hold_out(files, labels, split, seed):
  """Returns the sorted indices of one split.

  Of each class the 5 % with the smallest hashes are held out, at least one if there are two.
  """
  by_class = {}
  for index, label in enumerate(labels):
    by_class.setdefault(label, []).append(index)
  chosen = []
  for indices in by_class.values():
    indices.sort(key=lambda i: _hash(f"{seed}:{files[i]}"))
    count = max(1, round(HELD_OUT * len(indices))) if len(indices) > 1 else 0
    chosen += indices[count:] if split == "train" else indices[:count]
  return sorted(chosen)


def _hash(name):
  return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


class TfdsSource(Source):
  """A source of the encoded images of a TFDS data set, read without TensorFlow."""

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
  import tensorflow_datasets as tfds  # takes a second, and only this source needs it

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
  # The supervised keys come first: there may be coarser labels and masks too.
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
