"""Miniature tars of the official names through TFDS's real builder, then read and trained on."""

import io
import resource
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from imgtx_jax.cli import command
from imgtx_jax.convert import __main__ as convert
from imgtx_jax.convert import imagenet
from imgtx_jax.data import pipeline
from imgtx_jax.data.sources import open_source
from imgtx_jax.data.transforms import decode
from imgtx_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets", reason="no TFDS: pip install imgtx_jax")
# n01739381_1309 is one of the 22 in CMYK that the builder converts, n02105855_2933 the PNG.
TRAIN = {
  "n01440764": ["n01440764_18.JPEG", "n01440764_7.JPEG"],
  "n01739381": ["n01739381_1309.JPEG", "n01739381_2.JPEG"],
  "n02105855": ["n02105855_2933.JPEG"],
}
FORMATS = {"n01739381_1309.JPEG": ("CMYK", "JPEG"), "n02105855_2933.JPEG": ("RGB", "PNG")}


def color(name):
  """A colour of each file name's own."""
  return tuple(40 + 13 * (sum(name.encode()) * k % 15) for k in (1, 7, 11))


def encoded(name):
  mode, kind = FORMATS.get(name, ("RGB", "JPEG"))
  file = io.BytesIO()
  Image.new("RGB", (50, 37), color(name)).convert(mode).save(file, kind)
  return file.getvalue()


def make_tar(members):
  """The bytes of a tar of {name: bytes}."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return file.getvalue()


def write_tars(folder, validation=4):
  """The two tars; the validation images lie in the tar in another order than by name."""
  folder.mkdir(parents=True, exist_ok=True)
  inner = {f"{c}.tar": make_tar({n: encoded(n) for n in names}) for c, names in TRAIN.items()}
  (folder / "ILSVRC2012_img_train.tar").write_bytes(make_tar(inner))
  names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(validation, 0, -1)]
  (folder / "ILSVRC2012_img_val.tar").write_bytes(make_tar({n: encoded(n) for n in names}))
  return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """(data_dir, number of images, notes); the shuffle goes through files, as of the whole set."""
  from tensorflow_datasets.core import shuffle

  root = tmp_path_factory.mktemp("imagenet")
  notes = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    counts = imagenet.prepare(write_tars(root / "tars"), root / "data", notes.append)
  return root / "data", counts, notes


def test_the_real_builder_prepares_it_without_tensorflow(prepared):
  data_dir, counts, notes = prepared
  assert counts == {"train": 5, "validation": 4}
  assert "3 of 1000 classes" in notes[0] and "4 of 50000 images" in notes[1]
  names = sorted(path.name for path in (data_dir / "imagenet2012" / "5.1.0").iterdir())
  assert sum(name.startswith("imagenet2012-train.array_record") for name in names) >= 1
  assert not [name for name in names if "tmp" in name]
  assert "tensorflow" not in sys.modules


def test_what_was_changed_in_tfds_is_changed_back(prepared):
  from tensorflow_datasets.core import shuffle, utils
  from tensorflow_datasets.core.utils import image_utils

  assert utils.png_to_jpeg is image_utils.png_to_jpeg
  assert not isinstance(vars(shuffle)["tf"], imagenet.types.SimpleNamespace)


def assert_is(image, name):
  """That an image is the file's, of one colour."""
  assert image.shape == (37, 50, 3)
  # CMYK and JPEG round; the nearest two colours are 13 apart.
  np.testing.assert_allclose(image.reshape(-1, 3).mean(0), color(name), atol=5)


def items(source):
  return [source[i] for i in range(len(source))]


def read(split, data_dir):
  """{file name: (label, image)} of what the builder wrote, and our source of the same split."""
  source = open_source("tfds:imagenet2012", split=split, path=str(data_dir))
  stored = tfds.data_source(
    "imagenet2012", split=split, data_dir=data_dir, decoders={"image": tfds.decode.SkipDecoding()}
  )
  names = [example["file_name"].decode() for example in stored]
  return dict(zip(names, items(source), strict=True)), source


def test_training_images_are_read_with_their_labels(prepared):
  examples, source = read("train", prepared[0])
  assert source.num_classes == 1000
  assert set(examples) == {name for names in TRAIN.values() for name in names}
  for name, example in examples.items():
    assert source.class_names[example["label"]] == name.split("_")[0]
    assert_is(decode(example["image"]), name)
    assert example["image"][:2] == b"\xff\xd8"  # the PNG too is a JPEG now
    with Image.open(io.BytesIO(example["image"])) as image:
      assert image.mode == "RGB"


def test_validation_labels_follow_the_names(prepared):
  """The first lines of the list of 50,000 labels that TFDS holds."""
  examples, source = read("validation", prepared[0])
  listed = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
  assert sorted(examples) == [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 5)]
  for name, example in examples.items():
    assert source.class_names[example["label"]] == listed[int(name[15:23]) - 1]
    assert_is(decode(example["image"]), name)


def test_a_training_batch_is_drawn(prepared):
  source = open_source("tfds:imagenet2012", split="train", path=str(prepared[0]))
  batches = pipeline.train_iterator(
    source, batch_size=5, image_size=16, crop="random", min_scale=0.35, seed=0, threads=2
  )
  batch = next(batches)
  assert batch["image"].shape == (5, 16, 16, 3) and batch["image"].dtype == np.uint8
  colors = {example["label"]: [] for example in items(source)}
  for example in items(source):
    colors[example["label"]].append(decode(example["image"])[18, 25])
  for image, label in zip(batch["image"], batch["label"], strict=True):  # one epoch: each once
    distance = [np.abs(image.reshape(-1, 3).mean(0) - c).max() for c in colors[int(label)]]
    assert min(distance) < 3
  assert sorted(batch["label"]) == sorted(example["label"] for example in items(source))


# -- Bad input -------------------------------------------------------------------------------------


def broken(folder, case):
  """A folder of tars with something wrong with them."""
  train, val = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
  if case == "no folder":
    return folder
  write_tars(folder, validation=3)
  if case == "no validation":
    val.rename(folder / "val.tar")
  elif case == "flat train":
    train.write_bytes(make_tar({name: encoded(name) for name in TRAIN["n01440764"]}))
  elif case == "not a tar":
    train.write_bytes(b"<html>" * 1000)
  elif case == "half a tar":
    train.write_bytes(train.read_bytes()[:3000])
  elif case == "empty validation":
    val.write_bytes(make_tar({}))
  elif case == "gap":
    val.write_bytes(make_tar({f"ILSVRC2012_val_{i:08}.JPEG": b"" for i in (1, 2, 4)}))
  elif case == "damaged class":
    train.write_bytes(make_tar({"n01440764.tar": b"\x01" * 5000}))
  return folder


@pytest.mark.parametrize(
  "case, wanted",
  [
    ("no folder", "is no folder: give the one that holds ILSVRC2012_img_train.tar and"),
    ("no validation", r"has no ILSVRC2012_img_val.tar \(it holds ILSVRC2012_img_train.tar, val.t"),
    ("flat train", "2 of 2 members such as n01440764_18.JPEG, where .*n01440764.tar"),
    ("not a tar", "train.tar is no whole tar .*download it again"),
    ("half a tar", "train.tar is no whole tar"),
    ("empty validation", "val.tar holds 0 files, where"),
    ("gap", "val.tar holds 3 files, ILSVRC2012_val_00000004.JPEG out of order"),
    ("damaged class", "holds a damaged tar"),
  ],
)
def test_bad_tars(case, wanted, tmp_path):
  with pytest.raises(UserError, match=wanted) as error:
    imagenet.prepare(broken(tmp_path / "tars", case), tmp_path / "data", lambda line: None)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.glob("data/imagenet2012/*"))


def test_a_prepared_set_stays(prepared, tmp_path):
  data_dir = prepared[0]
  with pytest.raises(UserError, match=f"5.1.0 is there already: .*data.path={data_dir}"):
    imagenet.prepare(write_tars(tmp_path / "tars"), data_dir)


def test_too_small_a_disk(tmp_path, monkeypatch):
  usage = imagenet.shutil.disk_usage(tmp_path)._replace(free=9000)
  monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(UserError, match="0.0 GB free, and preparing needs"):
    imagenet.prepare(write_tars(tmp_path / "tars"), tmp_path / "data", lambda line: None)


@pytest.mark.parametrize("buffer", [2**30, 1000], ids=["shards", "buckets"])
def test_a_disk_that_fills_up(buffer, tmp_path, monkeypatch):
  """A file-size limit fails as a full disk does; nothing is left of the set."""
  from tensorflow_datasets.core import shuffle

  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", buffer)
  tars = write_tars(tmp_path / "tars")
  large = {"n01440764_18.JPEG": np.random.default_rng(0).bytes(2**18)}
  (tars / imagenet.TARS["train"]).write_bytes(make_tar({"n01440764.tar": make_tar(large)}))
  (tmp_path / "data" / "imagenet2012" / "incomplete.X_5.1.0").mkdir(parents=True)
  notes = []
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, hard))
  try:
    with pytest.raises(
      UserError, match="(?i)cannot write to .*data .*(file too large|efbig).*: free space"
    ):
      imagenet.prepare(tars, tmp_path / "data", notes.append)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [path.name for path in tmp_path.glob("data/imagenet2012/*")] == ["incomplete.X_5.1.0"]
  assert "incomplete.X_5.1.0 is left of a run" in notes[0]


def test_a_folder_that_is_not_there(tmp_path):
  arguments = ["imagenet", "--tars=none", f"--data_dir={tmp_path}"]
  with pytest.raises(UserError, match="--tars=.*/none is no folder"):
    command.parse(convert.COMMANDS, ["convert", *arguments]).run()


def test_the_command_says_how_to_train(tmp_path, capsys):
  arguments = [f"--tars={write_tars(tmp_path / 'tars')}", f"--data_dir={tmp_path / 'data'}"]
  command.parse(convert.COMMANDS, ["convert", "imagenet", *arguments]).run()
  text = capsys.readouterr().out
  assert "not all of ImageNet, 5 training and 4 validation images" in text
  assert f"--config.data.path={tmp_path / 'data'}" in text
  with pytest.raises(UserError, match="--tars is missing"):
    command.parse(convert.COMMANDS, ["convert", "imagenet", *arguments[1:]])
