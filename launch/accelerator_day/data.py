"""Unpacks what a folder of data holds into folders of images: python data.py DATA SCRATCH.

| in DATA | in SCRATCH |
|---|---|
| emoji_noto64.npz | emoji64/train, emoji64/val, held out as the package's emoji are |
| tiny_imagenet/train-*.tar, val.tar, or train/ and val/ | tiny_imagenet/train, val |
| monet_photo/photo.tar or photo/ | photos; photos_shown: 6 of them |
| styles/*.tar or folders | styles; styles_shown: 6 of them |

Prints {name: number of images} as JSON. What is absent is left out, what is there stays.
"""

import json
import pathlib
import shutil
import sys
import tarfile

_SHOWN = 6
_IMAGES = (".png", ".jpg", ".jpeg", ".JPEG")


def main(data, scratch):
  """Unpacks everything; returns {name: number of images}."""
  parts = {"emoji64": emoji, "tiny_imagenet": tiny_imagenet}
  parts |= {"photos": photos, "styles": styles}
  found = {}
  for name, unpack in parts.items():
    target, broken_off = scratch / name, scratch / f"{name}.part"
    if not target.exists():
      shutil.rmtree(broken_off, ignore_errors=True)
      broken_off.mkdir(parents=True)
      unpack(data, broken_off)
      if not images(broken_off):
        shutil.rmtree(broken_off)
        continue
      broken_off.rename(target)
    found[name] = len(images(target))
  for name in ("photos", "styles"):
    if name in found:
      show(scratch / name, scratch / f"{name}_shown")
  return found


def images(folder):
  """Returns the image files under a folder, in order."""
  return sorted(p for p in folder.rglob("*") if p.suffix in _IMAGES and p.is_file())


def show(folder, target):
  """Copies a few images, from all over a folder."""
  files = images(folder)
  target.mkdir(exist_ok=True)
  for i in range(min(_SHOWN, len(files))):
    file = files[i * len(files) // _SHOWN]
    shutil.copy(file, target / f"{i}-{file.name}")


def unpack(path, target):
  """Unpacks a tar file, or copies a folder, into target; nothing where there is neither."""
  if path.is_dir():
    shutil.copytree(path, target, dirs_exist_ok=True)
  elif path.is_file():
    with tarfile.open(path) as archive:
      archive.extractall(target, filter="data")


def tiny_imagenet(data, target):
  """Unpacks train and val."""
  for path in sorted((data / "tiny_imagenet").glob("train*")):
    unpack(path, target / "train")
  for path in sorted((data / "tiny_imagenet").glob("val*")):
    unpack(path, target / "val")
  for split in ("train", "val"):  # a tar file may hold the folder of its own name
    inner = target / split / split
    if inner.is_dir():
      inner.rename(target / f"{split}.inner")
      shutil.rmtree(target / split)
      (target / f"{split}.inner").rename(target / split)


def photos(data, target):
  """Unpacks the photographs of monet_photo."""
  for path in (data / "monet_photo" / "photo.tar", data / "monet_photo" / "photo"):
    unpack(path, target)


def styles(data, target):
  """Unpacks the style images."""
  for path in sorted((data / "styles").glob("*")):
    if path.is_dir() or path.suffix == ".tar":
      unpack(path, target)


def emoji(data, target):
  """Writes the emoji of 64×64 pixels as PNG files in class folders."""
  file = data / "emoji_noto64.npz"
  if not file.is_file():
    return
  import cv2
  import numpy as np

  from imgtx_jax.data import sources

  held_out = sources.open_source("emoji", split="validation")
  names = {held_out.name(i) for i in range(len(held_out))}
  with np.load(file, allow_pickle=False) as arrays:
    columns = (arrays["x"], arrays["y"], arrays["name"])
    classes = [str(name) for name in arrays["classes"]]
  for i, (image, label, name) in enumerate(zip(*columns, strict=True)):
    if classes[label] == "Component":  # too few to learn or to hold out
      continue
    split = "val" if str(name) in names else "train"
    folder = target / split / classes[label].replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{i:04}.png"), image[..., ::-1])


if __name__ == "__main__":
  print(json.dumps(main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))))
