"""Folders as people have them: splits by any name, links in circles, kinds of files; a table of
trees and what is read of them."""

import os

import numpy as np
import pytest
from PIL import Image

from imgtx_jax.data import sources
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import image_sets
from imgtx_jax.style_transfer import batch_jobs


def write(path, value=9):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)


def classes(root, *names, count=2, suffix=".png"):
  for number, name in enumerate(names):
    for i in range(count):
      write(root / name / f"{i}{suffix}", 20 * number + i)


def open_both(root):
  return [sources.open_source("folder", split=s, path=str(root)) for s in ("train", "validation")]


def names(source):
  return [source.name(i) for i in range(len(source))]


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "Val", "valid", "Validation", "VALIDATION"])
def test_splits_have_any_of_their_names_in_any_case(tmp_path, train, val):
  classes(tmp_path / train, "a", "b", count=3)
  classes(tmp_path / val, "a", "b", count=1)
  training, held_out = open_both(tmp_path)
  assert training.class_names == held_out.class_names == ["a", "b"]
  assert (len(training), len(held_out)) == (6, 2)


@pytest.mark.parametrize("test", ["test", "Testing"])
def test_a_test_split_is_not_used_and_said(tmp_path, test):
  classes(tmp_path / "Train", "a", "b", count=20)
  classes(tmp_path / test, "a", "b")
  training, held_out = open_both(tmp_path)
  assert (len(training), len(held_out)) == (38, 2)
  assert any(
    f"{test} is not used" in line for line in sources.describe("data", *open_both(tmp_path))
  )


REFUSED = {
  "classes beside splits": (["train/a", "val/a", "car", "plane"], "car, plane"),
  "a class called train": (["train/deep", "car", "plane"], "rename the class that is called train"),
  "a class called Test": (["Test/deep", "car"], "car"),
  "two training splits": (["train/a", "Train/a", "val/a"], "two training splits"),
  "two held-out splits": (["train/a", "val/a", "valid/a"], "two held-out splits, val and valid"),
  "no training split": (["Val/a", "Val/b"], "train/CLASS/"),
  "test alone": (["test/a"], "train/CLASS/"),
  "flat splits": (["Train", "Valid"], "Train/CLASS/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_rule_is_refused(tmp_path, case):
  folders, words = REFUSED[case]
  classes(tmp_path, *folders)
  with pytest.raises(UserError) as error:
    open_both(tmp_path)
  assert words in str(error.value) and "\n" not in str(error.value)


def test_one_folder_for_both_splits_is_refused(tmp_path):
  classes(tmp_path / "train", "a")
  (tmp_path / "val").symlink_to("train")
  with pytest.raises(UserError, match="are one folder"):
    open_both(tmp_path)


def test_a_class_called_train_is_noted(tmp_path):
  classes(tmp_path, "car", "train", "val")
  training, _ = open_both(tmp_path)
  assert training.class_names == ["car", "train", "val"]
  assert '"train, val" is a class' in training.notes[0]


LINKS = {
  "to its parent": ("red/up", ".."),
  "to itself": ("red/self", "."),
  "to a folder above the data": ("red/up", "../.."),
  "to another class": ("blue/more", "../red"),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_that_lead_back_are_not_followed(tmp_path, case):
  link, target = LINKS[case]
  root = tmp_path / "data"
  classes(root, "blue", "red", count=20)
  classes(tmp_path, "other")
  (root / link).symlink_to(target)
  training, held_out = open_both(root)
  assert sorted(names(training) + names(held_out)) == sorted(
    f"{name}/{i}.png" for name in ("blue", "red") for i in range(20)
  )
  (note,) = training.notes
  assert link in note and "not followed" in note


def test_links_to_elsewhere_are_followed_once(tmp_path):
  classes(tmp_path / "elsewhere", "a", count=3)
  classes(tmp_path / "data", "red")
  for name in ("one", "two"):
    (tmp_path / "data" / "red" / name).symlink_to(tmp_path / "elsewhere")
  training, held_out = open_both(tmp_path / "data")
  assert len(training) + len(held_out) == 5 and len(training.notes) == 1
  assert len(sources.open_files(str(tmp_path / "data"))) == 5


def test_a_class_that_is_a_link(tmp_path):
  classes(tmp_path / "elsewhere", "a", count=3)
  classes(tmp_path / "data", "red")
  (tmp_path / "data" / "green").symlink_to(tmp_path / "elsewhere" / "a")
  assert open_both(tmp_path / "data")[0].class_names == ["green", "red"]
  (tmp_path / "data" / "up").symlink_to(tmp_path)
  training, _ = open_both(tmp_path / "data")
  assert training.class_names == ["green", "red"] and "up leads back" in training.notes[0]
  (tmp_path / "data" / "blue").symlink_to("red")
  with pytest.raises(UserError, match="are one folder"):
    open_both(tmp_path / "data")


KINDS = (".jpg", ".JPEG", ".png", ".bmp", ".tif", ".TIFF", ".webp", ".gif", ".ppm", ".tga", ".jp2")


def test_every_kind_that_can_be_decoded_is_read(tmp_path):
  for kind in KINDS:
    write(tmp_path / "red" / f"x{kind[1:]}{kind}")
  (tmp_path / "red" / "notes.txt").write_text("no image")
  (tmp_path / "red" / "x.heic").write_text("no image that can be decoded")
  (tmp_path / "red" / ".hidden.png").write_text("")
  training, held_out = open_both(tmp_path)
  assert len(training) + len(held_out) == len(KINDS)
  (note,) = training.notes
  assert f"2 files in {tmp_path} are no images by their names" in note and ".heic 1, .txt 1" in note
  for source in (training, held_out):
    for i in range(len(source)):
      assert image_sets.transforms.decode(source[i]["image"]).shape == (16, 16, 3)


def test_every_command_reads_every_kind(tmp_path):
  for kind in KINDS:
    write(tmp_path / f"x{kind[1:]}{kind}")
  (tmp_path / "notes.txt").write_text("no image")
  found = image_sets.open_files(tmp_path)
  assert found.count == len(KINDS) and ".txt 1" in found.notes[0]
  notes = []
  assert len(batch_jobs.find(tmp_path, notes)) == len(KINDS) and notes == found.notes


def test_a_run_says_what_it_trains_on(tmp_path):
  classes(tmp_path, "a", "b", "c", "d", "e", count=20)
  classes(tmp_path, "few", count=9)
  write(tmp_path / "stray.png")
  assert sources.describe("data", *open_both(tmp_path)) == [
    "data: 103 images of 6 classes for training (a, b, c, d, e, …), 6 held out",
    "data: note: 1 classes have under 10 images for training: few",
    f"data: note: 1 images in {tmp_path} itself, such as stray.png, are in no class and not used",
  ]


def test_a_source_without_classes_says_so(tmp_path):
  classes(tmp_path, "a", count=20)
  pair = [
    sources.open_source("images", split=s, path=f"{tmp_path}") for s in ("train", "validation")
  ]
  assert sources.describe("style", *pair) == ["style: 19 images for training, 1 held out"]


def test_a_folder_whose_name_has_a_comma(tmp_path):
  classes(tmp_path, "a,b", count=20)
  assert len(sources.open_source("images", split="train", path=f"{tmp_path}/a,b")) == 19


def test_names_that_are_not_utf8(tmp_path):
  folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
  os.mkdir(folder)
  for i in range(12):
    write(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.path.join(folder, b"\xff%d.png" % i))
  training, held_out = open_both(tmp_path)
  assert training.class_names == [r"caf\xe9"] and len(training) == 11
  assert all(name.isascii() for name in names(training))
  assert training[0]["image"] and training.digest() != held_out.digest()
  assert image_sets.open_files(tmp_path).count == 12


def test_a_special_file_is_no_image(tmp_path):
  classes(tmp_path, "a", count=3)
  os.mkfifo(tmp_path / "a" / "pipe.png")
  (tmp_path / "a" / "broken.png").symlink_to("nowhere.png")
  source = sources.open_files(str(tmp_path))
  assert sorted(source.files) == ["a/0.png", "a/1.png", "a/2.png", "a/broken.png"]
  assert "pipe.png" in source.notes[0]
