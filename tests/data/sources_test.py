"""The embedded emoji's split, folders in every state, TFDS without TensorFlow."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from imgtx_jax.data.sources import open_source
from imgtx_jax.data.transforms import decode
from imgtx_jax.errors import UserError


def write_image(path, value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (8, 8), (value % 256, 0, 0)).save(path)


def write_classes(root, classes, count=2, suffix=".png"):
  for c in classes:
    for i in range(count):
      write_image(root / c / f"{i}{suffix}", i)


def names(source):
  return [source[i]["name"] for i in range(len(source))]


def test_emoji_are_whole_and_labelled():
  train, validation = (open_source("emoji", split=s) for s in ("train", "validation"))
  assert len(train) + len(validation) == 3781
  assert train.class_names == validation.class_names and train.num_classes == 9
  assert "Component" not in train.class_names
  example = train[0]
  assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
  assert type(example["label"]) is int and type(example["name"]) is str
  flag = names(train).index("flag-ad")
  assert train.class_names[train[flag]["label"]] == "Flags"


def test_emoji_split_holds_out_a_tenth_of_each_class_and_leaks_nothing():
  base_names, images = {}, {}
  for split in ("train", "validation"):
    source = open_source("emoji", split=split)
    items = [source[i] for i in range(len(source))]
    base_names[split] = {(x["label"], x["name"].split("~")[0]) for x in items}
    images[split] = {x["image"].tobytes() for x in items}
  assert not {b for _, b in base_names["train"]} & {b for _, b in base_names["validation"]}
  assert not images["train"] & images["validation"]
  for label in range(9):
    held, kept = (sum(c == label for c, _ in base_names[s]) for s in ("validation", "train"))
    assert 0.08 < held / (held + kept) < 0.12


def test_folder_with_train_and_val(tmp_path):
  write_classes(tmp_path / "train", ["b", "a"], 3)
  write_classes(tmp_path / "val", ["a", "b"], 1, ".webp")
  write_image(tmp_path / "train" / "a" / "deeper" / "x.JPEG", 77)
  (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
  train = open_source("folder", split="train", path=str(tmp_path))
  validation = open_source("folder", split="validation", path=str(tmp_path))
  assert train.class_names == validation.class_names == ["a", "b"]
  assert sorted(names(train)) == sorted(
    ["a/0.png", "a/1.png", "a/2.png", "a/deeper/x.JPEG", "b/0.png", "b/1.png", "b/2.png"]
  )
  assert names(validation) == ["a/0.webp", "b/0.webp"]
  example = train[names(train).index("a/deeper/x.JPEG")]
  assert example["label"] == 0 and abs(int(decode(example["image"])[0, 0, 0]) - 77) < 3


@pytest.mark.parametrize("inner", ["", "train"])
def test_folder_without_val_holds_out_a_part_of_each_class(tmp_path, inner):
  write_classes(tmp_path / inner, ["big"], 40)
  write_classes(tmp_path / inner, ["small"], 2)
  write_classes(tmp_path / inner, ["single"], 1)

  def open_split(split, seed=0):
    return names(open_source("folder", split=split, path=str(tmp_path), seed=seed))

  train, validation = open_split("train"), open_split("validation")
  assert len(train) == 38 + 1 + 1 and len(validation) == 2 + 1
  assert not set(train) & set(validation)
  assert validation == open_split("validation")
  assert any(validation != open_split("validation", seed) for seed in range(1, 5))


def test_folder_may_have_a_class_called_train(tmp_path):
  write_classes(tmp_path, ["train", "bus"])
  assert open_source("folder", split="train", path=str(tmp_path)).class_names == ["bus", "train"]


@pytest.mark.parametrize(
  "case, wanted",
  [
    ("no path", "needs a path"),
    ("missing", "not a folder"),
    ("empty", "no class folder"),
    ("images only", "no class folder"),
    ("train empty", "train/CLASS/"),
    ("train flat", "train/CLASS/"),
    ("val only", "train/CLASS/"),
    ("val empty", "train has 2 classes and validation 0"),
    ("class empty", "1 of 3 classes without an image.*hollow"),
    ("other classes", "c only in .*train; d only in .*val"),
    ("nothing to hold out", "one image a class"),
  ],
)
def test_folder_mistakes_are_explained(tmp_path, case, wanted):
  path, split = str(tmp_path), "train"
  if case == "no path":
    path = ""
  elif case == "missing":
    path = str(tmp_path / "nowhere")
  elif case == "images only":
    write_image(tmp_path / "0.png")
  elif case == "train empty":
    (tmp_path / "train").mkdir()
  elif case == "train flat":
    write_image(tmp_path / "train" / "0.png")
    write_image(tmp_path / "val" / "0.png")
  elif case == "val only":
    write_classes(tmp_path / "val", ["a"])
  elif case == "val empty":
    write_classes(tmp_path / "train", ["a", "b"])
    (tmp_path / "val").mkdir()
  elif case == "class empty":
    write_classes(tmp_path / "train", ["a", "b"])
    (tmp_path / "train" / "hollow").mkdir()
  elif case == "other classes":
    write_classes(tmp_path / "train", ["a", "c"])
    write_classes(tmp_path / "val", ["a", "d"])
  elif case == "nothing to hold out":
    write_classes(tmp_path, ["a", "b"], 1)
    split = "validation"
  with pytest.raises(UserError, match=wanted) as error:
    open_source("folder", split=split, path=path)
  assert "\n" not in str(error.value)


def test_unknown_source():
  with pytest.raises(UserError, match='"emoji", "folder", "images" or "tfds:NAME"'):
    open_source("cifar10", split="train")


BUILDER = """
import io
import tensorflow_datasets as tfds
from PIL import Image

class Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="16x12"), tfds.core.BuilderConfig(name="8x6")]

  def _info(self):
    return self.dataset_info_from_configs(supervised_keys=("image", "label"),
      features=tfds.features.FeaturesDict({
        "coarse": tfds.features.ClassLabel(names=["pet"]), "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"])}))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

  def _generate_examples(self, count):
    for i in range(count):
      buffer = io.BytesIO()
      Image.new("RGB", (16, 12), (10 * i, 0, 0)).save(buffer, "PNG")
      buffer.seek(0)
      yield i, {"image": buffer, "label": i % 2, "coarse": 0}
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A data_dir with the data set tiny_pets, prepared as array_record without TensorFlow."""
  root = tmp_path_factory.mktemp("tfds")
  package = root / "code" / "tiny_pets"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  (package / "tiny_pets_dataset_builder.py").write_text(BUILDER)
  sys.path.insert(0, str(root / "code"))
  try:
    from tiny_pets.tiny_pets_dataset_builder import Builder

    Builder(data_dir=root / "data", file_format="array_record").download_and_prepare()
  finally:
    sys.path.remove(str(root / "code"))
  return str(root / "data")


@pytest.mark.parametrize("name", ["tiny_pets", "tiny_pets/16x12", "tiny_pets/16x12:1.0.0"])
def test_tfds_by_name(name, tfds_folder):
  """A config is named like imagenet_resized/64x64."""
  train = open_source(f"tfds:{name}", split="train", path=tfds_folder)
  validation = open_source(f"tfds:{name}", split="validation", path=tfds_folder)
  assert len(train) == 20 and len(validation) == 3  # the test split stands in
  assert train.class_names == ["cat", "dog"]
  for i in range(20):
    example = train[i]
    image = np.asarray(Image.open(io.BytesIO(example["image"])))
    assert image.shape == (12, 16, 3) and image[0, 0, 0] // 10 % 2 == example["label"]
  assert len(set(names(train))) == 20
  assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
  "name, wanted",
  [
    ("no_such_set", 'no TFDS data set "no_such_set".*tfds build'),
    ("tiny_pets:9.9.9", "9.9.9.*tfds build"),
    ("mnist", "not prepared.*tfds build mnist --file_format=array_record"),
    ("bad name!", "no TFDS data set"),
    ("tiny_pets/64x64", "64x64.*tfds build"),
    ("imagenet2012", "not prepared.*imgtx_jax.convert imagenet --tars DIR --data_dir [^ ]*tfds"),
    ("imagenet_resized/64x64", "not prepared.*tfds build imagenet_resized/64x64 --file"),
  ],
)
def test_tfds_mistakes_are_explained(tfds_folder, name, wanted):
  with pytest.raises(UserError, match=wanted) as error:
    open_source(f"tfds:{name}", split="train", path=tfds_folder)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["emoji", "folder", "tfds"])
def test_sources_survive_pickling(kind, tmp_path, tfds_folder):
  write_classes(tmp_path, ["a", "b"])
  name = "tfds:tiny_pets" if kind == "tfds" else kind
  source = open_source(name, split="train", path=tfds_folder if kind == "tfds" else str(tmp_path))
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source) and copy.class_names == source.class_names
  np.testing.assert_equal(copy[1], source[1])


def test_images_of_several_folders_without_classes(tmp_path):
  for folder, count in (("a", 40), ("b/deep", 20)):
    for i in range(count):
      write_image(tmp_path / folder / f"{i:02}.png", i)
  path = f"{tmp_path}/a, {tmp_path}/b,{tmp_path}/b"
  train, held_out = (open_source("images", split=s, path=path) for s in ("train", "validation"))
  assert (len(train), len(held_out)) == (38 + 2 * 19, 2 + 2 * 1)  # b counts twice
  assert not set(names(train)) & set(names(held_out)) and train.num_classes == 1
  assert {str(tmp_path / "b" / "deep") in name for name in names(train)} == {True, False}
  assert decode(train[0]["image"]).shape == (8, 8, 3) and train[0]["label"] == 0


@pytest.mark.parametrize("path, wanted", [("", "needs a path"), ("none", "holds no image")])
def test_images_of_nowhere(tmp_path, path, wanted):
  with pytest.raises(UserError, match=wanted):
    open_source("images", split="train", path=path and f"{tmp_path}/{path}")
