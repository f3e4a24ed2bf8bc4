"""Lists folders of images: splits, classes, and the images below them.

Splits go by these names, in any case of letters:

  train, training     val, valid, validation     test, testing

  DIR/train/CLASS/…  DIR/val/CLASS/…   training and held-out images, of the same classes
  DIR/train/CLASS/…                    a part of each class is held out
  DIR/CLASS/…                          the same

A split holds class folders; a folder of such a name that holds only images, beside other class
folders, is a class. Beside splits there is nothing else, and a split is there once. A test split is
never used. Folders whose names begin with "." or "__" are passed over. Links are followed, each
real folder once: a link back to a folder that holds it, or to one that is read anyway, is not.
"""

import os
from collections import Counter
from pathlib import PurePath

from imgtx_jax.errors import UserError
from imgtx_jax.io.image_files import SUFFIXES

SPLITS = {
  "training": ("train", "training"),
  "held-out": ("val", "valid", "validation"),
  "test": ("test", "testing"),
}
_SHOWN = 5  # names in a message


def find_splits(path):
  """Returns a data folder's (folder of training classes, folder of held-out ones or None, notes).

  Raises UserError if it does not follow the module's rules.
  """
  names = folders(path)
  found = {split: [n for n in names if n.lower() in words] for split, words in SPLITS.items()}
  named = [name for split in found.values() for name in split]
  others = [name for name in names if name not in named]
  if not any(folders(os.path.join(path, name)) for name in named):
    if named and not others:
      raise UserError(_no_classes(os.path.join(path, (found["training"] or ["train"])[0])))
    taken = f'{path}/{", ".join(named)}: no class folders in it, so "{", ".join(named)}" is a class'
    return path, None, [taken] if named else []
  if others:
    raise UserError(
      f"{path} holds splits ({_some(named)}) and other folders ({_some(others)}): put every class "
      f"into {path}/train/ and {path}/val/, or rename the class that is called {named[0]}"
    )
  for split, twice in found.items():
    if len(twice) > 1:
      raise UserError(
        f"{path} has two {split} splits, {' and '.join(twice)}: keep one of them there"
      )
  train = os.path.join(path, (found["training"] or ["train"])[0])
  if not folders(train):
    raise UserError(_no_classes(train))
  notes = [f"{path}/{name} is not used: it is a test split" for name in found["test"]]
  val = os.path.join(path, found["held-out"][0]) if found["held-out"] else None
  if val and os.path.samefile(train, val):
    raise UserError(f"{train} and {val} are one folder: hold other images out, or remove {val}")
  return train, val, notes


def _no_classes(path):
  return f"{path} has no class folder: put the images into {path}/CLASS/"


def folders(path):
  """Returns the sorted names of the folders in a folder, without hidden ones; [] if none."""
  if not os.path.isdir(path):
    return []
  return sorted(e.name for e in _entries(path) if _counts(e.name) and e.is_dir())


def _counts(name):
  return not name.startswith((".", "__"))


def _entries(path):
  try:
    with os.scandir(path) as entries:
      return list(entries)
  except OSError as error:
    raise UserError(
      f"{path} cannot be listed ({error.strerror}): give a folder that can be read"
    ) from error


def list_classes(root):
  """Lists the images of a folder of class folders.

  Returns (files, labels, class names, notes): paths "CLASS/…/image.jpg", and the number of each
  one's class. Raises UserError if there are no classes, or classes without images.
  """
  walk = Walk(root)
  classes = [name for name in folders(root) if walk.claim(name)]
  if not classes:
    raise UserError(_no_classes(root))
  files, labels, empty = [], [], []
  for label, name in enumerate(classes):
    found = walk.images(name)
    files += found
    labels += [label] * len(found)
    empty += [] if found else [name]
  if empty:
    raise UserError(
      f"{root} has {len(empty)} of {len(classes)} classes without an image: remove or fill "
      f"{'; '.join(filter(None, (_some(empty), walk.left_out())))}"
    )
  stray = [e.name for e in _entries(root) if _counts(e.name) and e.is_file() and is_image(e.name)]
  if stray:
    walk.notes.append(
      f"{len(stray)} images in {root} itself, such as {min(stray)}, are in no class and not used"
    )
  return files, labels, [readable(name) for name in classes], walk.all_notes()


def list_images(root):
  """Returns (files, notes): the images in and below a folder, sorted by path."""
  walk = Walk(root)
  return walk.images(""), walk.all_notes()


def check_same_classes(train, val):
  """Raises UserError unless two folders hold the same class folders."""
  ours, theirs = set(folders(train)), set(folders(val))
  if ours != theirs:
    lone = [f"{c} only in {train}" for c in sorted(ours - theirs)[:3]]
    lone += [f"{c} only in {val}" for c in sorted(theirs - ours)[:3]]
    raise UserError(
      f"train has {len(ours)} classes and validation {len(theirs)}, and both need the same:"
      f" {'; '.join(lone)}"
    )


def is_image(name):
  """Returns whether a file's suffix is that of an image format that can be decoded."""
  return name.lower().endswith(SUFFIXES)


def readable(name):
  """Returns a file's name as printable text: bytes that are not UTF-8 become \\xNN."""
  return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Walk:
  """Lists the images below the folders of one root, each real folder once.

  notes: lines about folders that were left out.
  """

  def __init__(self, root):
    self.root, self.notes = root, []
    self._others, self._example = Counter(), ""
    self._seen = {}
    above = os.path.realpath(root)
    while above not in self._seen.values():
      self._seen[_identity(above)] = above
      above = os.path.dirname(above)

  def claim(self, name):
    """Adds the class folder root/name; returns False if it links back to a folder above it."""
    path = os.path.join(self.root, name)
    before = self._seen.setdefault(_identity(path), name)
    if before == name:
      return True
    if before in folders(self.root):
      raise UserError(f"{path} and {self.root}/{before} are one folder: remove one of the links")
    self.notes.append(f"{path} leads back to {before} and is not used")
    return False

  def images(self, folder):
    """Returns the sorted paths, relative to root, of the images in root/folder and below."""
    found, todo = [], [folder]
    while todo:
      inside = todo.pop()
      for entry in _entries(os.path.join(self.root, inside)):
        path = os.path.join(inside, entry.name)
        if entry.is_dir():
          if _counts(entry.name) and self._enter(path):
            todo.append(path)
        elif entry.name.startswith("."):
          continue
        elif is_image(entry.name) and (entry.is_file() or entry.is_symlink()):
          found.append(path)  # a broken link too: reading it says so
        else:
          self._leave_out(path)
    return sorted(found)

  def _enter(self, folder):
    path = os.path.join(self.root, folder)
    before = self._seen.setdefault(_identity(path), folder)
    if before == folder:
      return True
    self.notes.append(f"{path} leads to {before}, which is read already: not followed")
    return False

  def _leave_out(self, path):
    self._others[PurePath(path).suffix.lower() or "no ending"] += 1
    self._example = min(self._example or path, path)

  def left_out(self):
    """Returns a line about the files that are no images by their names; "" if there are none."""
    if not self._others:
      return ""
    kinds = sorted(self._others.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    total = sum(self._others.values())
    return (
      f"{total} files in {self.root} are no images by their names and left out: "
      f"{', '.join(f'{kind} {count}' for kind, count in kinds)}; such as {self._example}"
    )

  def all_notes(self):
    """Returns all notes as printable text."""
    return [readable(note) for note in [*self.notes, self.left_out()] if note]


def _identity(path):
  try:
    found = os.stat(path)
  except OSError as error:
    raise UserError(f"{path} is no folder that can be read ({error.strerror})") from error
  return found.st_dev, found.st_ino


def _some(names):
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more
