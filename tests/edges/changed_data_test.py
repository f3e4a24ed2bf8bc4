"""What a run depends on and what may change between two calls: a table of changes, one line each,
before anything is written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import imgtx_jax
from imgtx_jax import main
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import inputs, reference
from imgtx_jax.training import data_record, workdir


def write_images(folder, count, start=0):
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(start, start + count):
    Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(folder / f"{i:02}.png")


@pytest.fixture
def start(tmp_path, tiny_config, monkeypatch):
  """start(**keys of config.data): main.run on tmp_path/data, whose stages finish at once."""
  for name in ("red", "green", "blue"):
    write_images(tmp_path / "data" / name, 12)
  write_images(tmp_path / "styles", 5)
  tiny_config.stages = ("tokenizer", "style")
  tiny_config.style.data.path = str(tmp_path / "styles")
  tiny_config.data.source = "folder"
  monkeypatch.setattr(main.report, "write", lambda directory: None)

  def finish(task, config, directory, *_):
    workdir.write_summary(f"{directory}/{task.name}", {"steps": 6})

  monkeypatch.setattr(main, "run_task", finish)

  def run(path=tmp_path / "data", **keys):
    tiny_config.data.update(dict(path=str(path), **keys))
    main.run(tiny_config, tmp_path / "run")

  return run


def contents(folder):
  return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rename(data):
  (data / "red").rename(data / "apple")


def add_a_class(data):
  write_images(data / "white", 12)


def drop_a_class(data):
  shutil.rmtree(data / "red")


def add_images(data):
  write_images(data / "red", 3, 30)


def rename_an_image(data):
  held_out = [data / "red" / f"{i:02}.png" for i in range(12)]
  held_out[3].rename(data / "red" / "03.jpg.png")


def add_a_style(data):
  write_images(data.parent / "styles", 2, 30)


CHANGES = {
  rename: ["apple is new and red is missing", "3 classes"],
  add_a_class: ["white is new;"],
  drop_a_class: ["red is missing;"],
  add_images: ["training images", "class red has 14 and had 11", "data.json"],
  rename_an_image: ["training images", "as many, 33,"],
  add_a_style: ["training images", "there are 6, and there were 4"],
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_data_are_refused_before_anything_is_written(tmp_path, start, change, finished):
  start()
  if not finished:
    (tmp_path / "run" / "1-style" / "summary.json").unlink()
  before = contents(tmp_path / "run")
  change(tmp_path / "data")
  with pytest.raises(UserError) as error:
    start()
  line = str(error.value)
  assert "\n" not in line and str(tmp_path / "run") in line and "another --workdir" in line
  assert all(word in line for word in CHANGES[change]), line
  assert contents(tmp_path / "run") == before


def test_another_folder_with_other_classes_is_refused(tmp_path, start):
  start()
  for name in ("cat", "dog", "emu"):
    write_images(tmp_path / "other" / name, 12)
  with pytest.raises(UserError, match="cat, dog, emu are new and blue, green, red are missing"):
    start(tmp_path / "other")


def test_the_same_data_elsewhere_are_the_same(tmp_path, start, capsys):
  start()
  before = contents(tmp_path / "run")
  (tmp_path / "data").rename(tmp_path / "moved")
  start(tmp_path / "moved")
  assert capsys.readouterr().out.count("nothing to do") == 2
  changed = {p.name for p, data in contents(tmp_path / "run").items() if before.get(p) != data}
  assert changed == {"config.json"}


def test_another_image_size_is_refused(start):
  start()
  with pytest.raises(UserError, match="data.image_size is 16 there and 32 here"):
    start(image_size=32)


def test_another_version_is_noted(tmp_path, start, capsys, monkeypatch):
  start()
  begun = imgtx_jax.__version__
  monkeypatch.setattr(imgtx_jax, "__version__", "9.9.9")
  start()
  assert f"was begun with imgtx_jax {begun}, and this is 9.9.9" in capsys.readouterr().out
  assert json.loads((tmp_path / "run" / "data.json").read_text())["imgtx_jax"] == begun


def test_deleting_the_record_accepts_the_images_as_they_are(tmp_path, start):
  start()
  add_images(tmp_path / "data")
  (tmp_path / "run" / "data.json").unlink()
  start()
  record = json.loads((tmp_path / "run" / "data.json").read_text())
  assert record["sources"]["data"]["training"]["class_images"] == [11, 11, 14]


def test_the_classes_are_remembered_without_their_file(tmp_path, start):
  start()
  (tmp_path / "run" / "classes.json").unlink()
  start()
  assert workdir.read(tmp_path / "run")[1] == ["blue", "green", "red"]
  (tmp_path / "run" / "classes.json").unlink()
  (tmp_path / "data" / "red").rename(tmp_path / "data" / "rose")
  with pytest.raises(UserError, match="images of .* have changed"):
    start()


def test_a_damaged_record_is_one_line(tmp_path, start):
  start()
  for text in ("", "{", "[]", '{"sources": {"data": 3}}'):
    (tmp_path / "run" / "data.json").write_text(text)
    with pytest.raises(UserError, match="data.json is damaged"):
      start()


def test_numbers_stand_for_the_names_of_imported_classes(tmp_path, tiny_config):
  workdir.claim(tiny_config, tmp_path, ["0", "1"])
  workdir.claim(tiny_config, tmp_path, ["cat", "dog"])
  assert workdir.read(tmp_path)[1] == ["cat", "dog"]
  with pytest.raises(UserError, match="emu is new and dog is missing"):
    workdir.claim(tiny_config, tmp_path, ["cat", "emu"])
  with pytest.raises(UserError, match="their order is another one"):
    workdir.claim(tiny_config, tmp_path, ["dog", "cat"])


def test_evaluation_sees_changed_classes(tmp_path, start):
  start()
  config, names = workdir.read(tmp_path / "run")
  model = inputs.Model(str(tmp_path / "run"), config, names, None, {})
  assert reference.own_data(model, "train").count == 33
  rename(tmp_path / "data")
  with pytest.raises(UserError, match="apple is new and red is missing"):
    reference.own_data(model, "train")
  with pytest.raises(UserError, match="apple is new and red is missing"):
    inputs.data_labels(model, True)
  assert inputs.data_labels(model, False) is None


def test_a_source_is_told_by_its_names(start, tmp_path):
  records = [data_record.describe({"data": (s, s)}) for s in two_sources(tmp_path)]
  assert records[0] == records[1]


def two_sources(root):
  from imgtx_jax.data import sources

  write_images(root / "a", 3)
  shutil.copytree(root / "a", root / "elsewhere")
  return [
    sources.open_source("images", split="train", path=str(root / name))
    for name in ("a", "elsewhere")
  ]
