"""Crops, shards, what a kill or a bad disk leaves, and the order in which a cache is read."""

import dataclasses
import errno
import itertools
import json
import os
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from imgtx_jax.data import code_cache, pipeline, transforms
from imgtx_jax.data.sources import ArraySource, open_source
from imgtx_jax.errors import UserError
from imgtx_jax.training import build_code_cache

SIZE = 8
FINGERPRINT = {"tokenizer.weights": "a1", "data.images": 10, "scales": [1.5]}
CROPS = transforms.make_crop_set(SIZE, "ten", (1.5, 1.25), flip=True)


# -- Crops -----------------------------------------------------------------------------------------


def test_ten_crops_of_two_scales_as_llamagen_makes_them():
  crop_set = transforms.make_crop_set(256, "ten", (1.1, 1.05), flip=True)
  assert crop_set.sides == (281, 268) and crop_set.table.shape == (20, 4)
  assert crop_set.table[:5].tolist() == [
    [0, 0, 0, 0], [0, 0, 25, 0], [0, 25, 0, 0], [0, 25, 25, 0], [0, 12, 12, 0],
  ]  # fmt: skip
  np.testing.assert_array_equal(crop_set.table[10:, :3], crop_set.table[:10, :3])
  assert crop_set.table[10:, 3].all()


@pytest.mark.parametrize(
  ("kind", "scales", "flip", "table"),
  [
    ("center", (1.0,), False, [[0, 0, 0, 0]]),
    ("center", (1.0,), True, [[0, 0, 0, 0], [0, 0, 0, 1]]),
    ("center", (1.5,), False, [[0, 2, 2, 0]]),
    ("ten", (1.0, 1.01), False, [[0, 0, 0, 0]]),  # what coincides is taken once
  ],
)
def test_small_crop_sets(kind, scales, flip, table):
  assert transforms.make_crop_set(SIZE, kind, scales, flip).table.tolist() == table


def test_crops_of_a_ramp_by_hand():
  """A 6×6 image of a crop_set with that side: the pixel at (y, x) is 10 y + x."""
  crop_set = transforms.make_crop_set(4, "ten", (1.5,), flip=True)
  ramp = 10 * np.arange(6, dtype=np.uint8)[:, None] + np.arange(6, dtype=np.uint8)
  wide = np.pad(ramp, ((0, 0), (2, 2)))  # the square is the middle of it
  squares = transforms.resize_squares(np.stack([wide] * 3, -1), crop_set)
  np.testing.assert_array_equal(squares[0, :, :, 1], ramp)
  crops = [np.asarray(transforms.take_crop(squares[None], row, 4)) for row in crop_set.table]
  crops = [crop[0, :, :, 0] for crop in crops]
  assert [c[0, 0] for c in crops] == [0, 2, 20, 22, 11, 3, 5, 23, 25, 14]
  for plain, mirrored in zip(crops[:5], crops[5:], strict=True):
    np.testing.assert_array_equal(plain[:, ::-1], mirrored)
    np.testing.assert_array_equal(np.diff(plain), 1)


def test_a_smaller_square_is_padded():
  crop_set = transforms.make_crop_set(4, "ten", (1.5, 1.25), flip=False)
  squares = transforms.resize_squares(np.full((9, 7, 3), 200, np.uint8), crop_set)
  assert squares.shape == (2, 6, 6, 3) and (squares[1, :5, :5] == 200).all()
  assert not squares[1, 5].any() and not squares[1, :, 5].any()


# -- A cache of made-up codes ----------------------------------------------------------------------


def wavy_source(count, smooth_images):
  labels = np.arange(count, dtype=np.int32) % 3
  return ArraySource(smooth_images(count, 13), labels, [f"{i}.png" for i in range(count)], "abc")


@pytest.fixture
def source(smooth_images):
  return wavy_source(10, smooth_images)


def fake_codes(images):
  """Codes [n, 4] of uint8 images [n, 8, 8, 3]: four of their pixels."""
  return images[:, ::4, ::4, 0].reshape(len(images), 4)


class Encoder:
  """build_code_cache.fill's encode for fake codes; counts its calls."""

  def __init__(self, crop_set=CROPS, at_once=2, dtype="uint16"):
    run = build_code_cache.encode_crops(lambda params, x: fake_codes(x), crop_set, dtype, at_once)
    self.run, self.calls = jax.jit(run), 0

  def __call__(self, squares):
    self.calls += 1
    return self.run(None, squares)


def layout_of(source, shard_examples=3, codebook_size=256, crop_set=CROPS):
  layout = code_cache.make_layout(len(source), len(crop_set.table), 4, codebook_size)
  return dataclasses.replace(layout, shard_examples=shard_examples)


def fill(
  folder, source, process=(0, 1), encode=None, report=lambda n: None, crop_set=CROPS, **options
):
  """What code_cache.prepare does, of one process; returns the cache and the shards it made."""
  cache = code_cache.CodeCache(folder, FINGERPRINT, layout_of(source, crop_set=crop_set, **options))
  missing = cache.missing(*process)
  cache.claim()
  if missing:
    encode = encode or Encoder(crop_set)
    build_code_cache.fill(
      cache, missing, source, encode, crop_set=crop_set, batch=2, threads=2, report=report
    )
  return cache, missing


def finished(folder, source, **options):
  cache, _ = fill(folder, source, **options)
  cache.finish()
  return cache.open(source)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_codes_are_those_of_the_crops(tmp_path, source):
  read = finished(tmp_path, source)
  assert len(read) == 10 and read.class_names == source.class_names
  for i in range(10):
    squares = transforms.resize_squares(source[i]["image"], CROPS)[None]
    crops = [np.asarray(transforms.take_crop(squares, row, SIZE)) for row in CROPS.table]
    example = read[i]
    assert example["codes"].dtype == np.uint16
    np.testing.assert_array_equal(example["codes"], np.concatenate([fake_codes(c) for c in crops]))
    assert example["label"] == source[i]["label"] and example["name"] == f"{i}.png"


def test_the_index_says_what_is_there(tmp_path, source):
  finished(tmp_path, source)
  index = json.loads((tmp_path / "index.json").read_text())
  assert index["fingerprint"] == FINGERPRINT
  assert index["layout"] == {
    "examples": 10, "crops": 20, "codes": 4, "dtype": "uint16", "shard_examples": 3,
  }  # fmt: skip
  names = {name for files in index["files"] for name in files}
  assert len(index["shards"]) == 4 and names | {"index.json"} == set(contents(tmp_path))
  assert np.load(tmp_path / index["files"][3][0]).shape == (1, 20, 4)
  layout = layout_of(source)
  assert layout.bytes == 10 * (20 * 4 * 2 + 4) and [len(layout.span(s)) for s in range(4)] == [
    3, 3, 3, 1,
  ]  # fmt: skip


def test_large_codebooks_take_four_bytes(tmp_path, source):
  assert code_cache.make_layout(10, 20, 4, 2**16).dtype == "uint16"
  read = finished(tmp_path, source, codebook_size=2**16 + 1, encode=Encoder(dtype="uint32"))
  assert read[0]["codes"].dtype == np.uint32


def test_shards_are_neither_tiny_nor_many():
  assert code_cache.make_layout(3416, 9, 64, 512).shards == 3
  imagenet = code_cache.make_layout(1_281_167, 20, 256, 16384)
  assert imagenet.shards == 256 and 12e9 < imagenet.bytes < 14e9
  assert code_cache.make_layout(1, 1, 10**8, 512).shards == 1


@pytest.mark.parametrize("images", [1, 6, 64, 1000])
@pytest.mark.parametrize("devices", [1, 4])
def test_batches_fit_devices_and_crops(images, devices):
  crop_set = transforms.make_crop_set(256, "ten", (1.1, 1.05), flip=True)
  batch, at_once = build_code_cache.batch_sizes(images, crop_set, devices)
  assert batch % devices == 0 and 20 % at_once == 0
  assert batch * at_once <= max(images, devices)
  assert batch * np.prod(crop_set.square_shape) <= max(
    build_code_cache.BATCH_BYTES, devices * 2**19
  )
  assert 2 * batch * at_once > min(images, 2 * batch)


# -- Broken off, damaged, foreign ------------------------------------------------------------------


class Killed(Exception):
  """Stands for a kill."""


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_killed_build_goes_on_with_the_missing_shards(tmp_path, source, after):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  encoder = Encoder()
  finished(whole, source, encode=encoder)
  assert encoder.calls == 2 + 2 + 2 + 1  # batches of two, in shards of three
  done = 0

  def report(count):
    nonlocal done
    done += count
    if done >= after:
      raise Killed

  with pytest.raises(Killed):
    fill(broken, source, report=report)
  assert not list(broken.glob(".*"))
  here = (after - 1) // 3
  assert len(list(broken.glob("shard-*"))) == here
  again = Encoder()
  cache, made = fill(broken, source, encode=again)
  cache.finish()
  assert made == list(range(here, 4)) and again.calls == 7 - 2 * here
  assert contents(broken) == contents(whole)
  assert fill(broken, source)[1] == []


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["codes-00001.npy", "labels-00001.npy"])
def test_a_damaged_shard_is_found_and_made_again(tmp_path, source, caplog, name, listed):
  cache, _ = fill(tmp_path, source)
  if listed:
    cache.finish()
  before = contents(tmp_path)
  damaged = bytearray(before[name])
  damaged[-3] ^= 1
  (tmp_path / name).write_bytes(damaged)
  encoder = Encoder()
  cache, made = fill(tmp_path, source, encode=encoder)
  assert made == [1] and encoder.calls == 2
  assert [name in r.getMessage() for r in caplog.records] == [True]
  cache.finish()
  assert contents(tmp_path)[name] == before[name]
  assert cache.missing() == []


def test_a_cut_off_or_lost_file_is_made_again(tmp_path, source):
  finished(tmp_path, source)
  (tmp_path / "codes-00000.npy").write_bytes(b"")
  (tmp_path / "codes-00002.npy").unlink()
  cache, made = fill(tmp_path, source)
  assert made == [0, 2]
  cache.finish()
  assert len(cache.open(source)) == 10


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"tokenizer.weights": "b2"}, "tokenizer.weights is a1 there and b2 here"),
    ({"data.images": 11}, "data.images is 10 there and 11 here"),
    ({"scales": [1.5, 1.2]}, r"scales is \[1.5\] there and \[1.5, 1.2\] here"),
    ({"new": 1}, "new is absent there and 1 here"),
  ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_cache_of_something_else_is_refused(tmp_path, source, change, words, complete):
  cache, _ = fill(tmp_path, source)
  if complete:
    cache.finish()
  before = contents(tmp_path)
  with pytest.raises(UserError, match=f"{words}.*name another folder, or delete") as error:
    code_cache.CodeCache(tmp_path, FINGERPRINT | change, layout_of(source))
  assert "\n" not in str(error.value)
  assert contents(tmp_path) == before


def test_shards_of_another_cache_do_not_count(tmp_path, source):
  """As when index.json alone was deleted, to have the cache made again."""
  fill(tmp_path, source)
  (tmp_path / "index.json").unlink()
  other = code_cache.CodeCache(tmp_path, FINGERPRINT | {"flip": True}, layout_of(source))
  assert other.missing() == [0, 1, 2, 3]
  same = code_cache.CodeCache(tmp_path, FINGERPRINT, layout_of(source))
  assert same.missing() == []


DAMAGED_INDEXES = {
  "empty": lambda index: "",
  "a list": lambda index: "[]",
  "nothing in it": lambda index: "{}",
  "no layout": lambda index: '{"layout": {}, "fingerprint": {}}',
  "nested too deeply": lambda index: "[" * 100_000,
  "a text for a number": lambda index: index | {"layout": index["layout"] | {"examples": "x"}},
  "a shard of no example": lambda index: (
    index | {"layout": index["layout"] | {"shard_examples": 0}}
  ),
  "a shard too few": lambda index: index | {"shards": index["shards"][1:]},
  "shards that are numbers": lambda index: index | {"shards": [1] * len(index["shards"])},
}


@pytest.mark.parametrize("case", DAMAGED_INDEXES)
def test_a_damaged_index_is_refused(tmp_path, source, case):
  finished(tmp_path, source)
  path = tmp_path / "index.json"
  damaged = DAMAGED_INDEXES[case](json.loads(path.read_text()))
  path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
  with pytest.raises(UserError, match="index.json is no index .* delete"):
    fill(tmp_path, source)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": 1, "crc32": {}}', '"x"'])
def test_a_shard_with_a_damaged_record_is_made_again(tmp_path, source, text):
  cache = code_cache.CodeCache(tmp_path, FINGERPRINT, layout_of(source))
  cache.claim()
  cache.write_codes(0, np.zeros(1, np.int32), np.zeros((1, 1, 1), np.int32))
  assert 0 not in cache.missing()
  (tmp_path / "shard-00000.json").write_text(text)
  assert 0 in cache.missing()


def test_a_full_disk_loses_no_shard(tmp_path, source, monkeypatch):
  fsync, count = os.fsync, itertools.count()

  def full(file):
    if next(count) >= 5:  # the index, two shards of three files less one
      raise OSError(errno.ENOSPC, "No space left on device")
    fsync(file)

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the disk of .*free some, then run the"):
      fill(tmp_path, source)
  assert not list(tmp_path.glob(".*"))
  assert fill(tmp_path, source)[1] == [1, 2, 3]


# -- Processes -------------------------------------------------------------------------------------


def test_two_processes_write_what_one_does(tmp_path, source):
  whole, shared = tmp_path / "whole", tmp_path / "shared"
  finished(whole, source)
  _, first = fill(shared, source, process=(0, 2))
  alone = set(contents(shared))
  cache, second = fill(shared, source, process=(1, 2))
  assert (first, second) == ([0, 2], [1, 3])
  assert not any("00001" in name or "00003" in name for name in alone)
  cache.finish()
  assert contents(shared) == contents(whole)


def test_a_folder_that_is_not_shared_is_named(tmp_path, source):
  cache, _ = fill(tmp_path, source, process=(0, 2))
  with pytest.raises(UserError, match="shard-00001.json is not there.*all processes share"):
    cache.finish()


# -- Unreadable images -----------------------------------------------------------------------------


def png_folder(root, count, corrupt):
  for i in range(count):
    path = root / "train" / "ab"[i % 2] / f"{i:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), (i + 1, 0, 0)).save(path)
    if i in corrupt:
      path.write_bytes(path.read_bytes()[:40])
  for c in "ab":
    (root / "val" / c).mkdir(parents=True)
    Image.new("RGB", (9, 12)).save(root / "val" / c / "0.png")
  return open_source("folder", split="train", path=str(root))


def test_unreadable_images_are_left_out_and_counted(tmp_path):
  source = png_folder(tmp_path / "images", 12, corrupt=[4, 7])
  read = finished(tmp_path / "codes", source)
  assert len(read) == 10
  names = [read[i]["name"] for i in range(10)]
  assert names == [f for f in source.files if f not in ("a/004.png", "b/007.png")]
  for example in (read[i] for i in range(10)):
    assert (example["codes"] == int(example["name"][2:5]) + 1).all()
  found = pipeline.corrupt_images(read)
  assert found["count"] == 2 and sorted(found["names"]) == ["a/004.png", "b/007.png"]
  drawn = np.concatenate([b["codes"][:, 0] for b in itertools.islice(iterate(read), 5)])
  assert set(drawn) == set(range(1, 13)) - {5, 8}


def test_too_many_unreadable_images_stop_the_build(tmp_path):
  source = png_folder(tmp_path / "images", 12, corrupt=[0, 4, 7])
  with pytest.raises(UserError, match="3 unreadable"):
    fill(tmp_path / "codes", source)


def test_too_many_over_several_builds_are_noticed(tmp_path):
  """Each process alone stays under the limit."""
  source = png_folder(tmp_path / "images", 12, corrupt=[0, 4, 7])
  for process in (0, 1):
    again = open_source("folder", split="train", path=str(tmp_path / "images"))
    cache, _ = fill(tmp_path / "codes", again, process=(process, 2))
  cache.finish()
  with pytest.raises(UserError, match="3 unreadable.*then delete .*codes"):
    cache.open(source)


# -- Reading ---------------------------------------------------------------------------------------


def iterate(source, batch_size=2, **options):
  options = dict(image_size=0, crop="center", min_scale=1.0, seed=0, threads=2) | options
  return pipeline.train_iterator(source, batch_size=batch_size, **options)


@pytest.fixture
def numbered(tmp_path):
  """A cache of 20 examples: code 0 is the example's number, code 1 its crop's."""
  images = ArraySource(np.zeros((20, SIZE, SIZE, 3), np.uint8), np.arange(20), range(20), range(20))
  layout = code_cache.Layout(examples=20, crops=5, codes=2, dtype="uint16", shard_examples=7)
  cache = code_cache.CodeCache(tmp_path, {}, layout)
  for shard in range(3):
    span = np.array(cache.layout.span(shard))
    rows = np.stack(np.broadcast_arrays(span[:, None], np.arange(5)), axis=-1)
    cache.write_codes(shard, span, rows)
  cache.finish()
  return cache.open(images)


def test_a_batch_is_codes_and_labels(numbered):
  batch = next(iterate(numbered, batch_size=4))
  assert batch.keys() == {"codes", "label"}
  assert batch["codes"].shape == (4, 2) and batch["codes"].dtype == np.int32
  assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
  np.testing.assert_array_equal(batch["codes"][:, 0], batch["label"])


def test_the_next_batches_are_read_while_one_is_used(numbered, monkeypatch):
  drawn, enough = [], threading.Event()
  draw = numbered.draw

  def watched(index, rng):
    drawn.append(threading.current_thread())
    if len(drawn) == 12:
      enough.set()
    return draw(index, rng)

  monkeypatch.setattr(numbered, "draw", watched)
  iterator = iterate(numbered, batch_size=4)
  next(iterator)
  assert enough.wait(30)  # three batches, though only one was asked for
  assert threading.current_thread() not in drawn


def test_every_epoch_is_another_order_with_other_crops(numbered):
  batches = list(itertools.islice(iterate(numbered, batch_size=4), 50))
  drawn = np.concatenate([b["codes"] for b in batches]).reshape(10, 20, 2)
  np.testing.assert_array_equal(np.sort(drawn[:, :, 0]), np.tile(np.arange(20), (10, 1)))
  assert len({tuple(epoch[:, 0]) for epoch in drawn}) == 10
  counts = np.bincount(drawn[:, :, 1].reshape(-1), minlength=5)
  assert counts.min() > 20  # 40 expected of each crop
  crops = [epoch[np.argsort(epoch[:, 0]), 1] for epoch in drawn]
  assert len({tuple(c) for c in crops}) == 10


def test_two_processes_read_the_batches_of_one(numbered):
  alone = list(itertools.islice(iterate(numbered, batch_size=4), 12))
  parts = [
    itertools.islice(iterate(numbered, batch_size=4, process_index=p, process_count=2), 12)
    for p in (0, 1)
  ]
  for whole, first, second in zip(alone, *parts, strict=True):
    for key in whole:
      np.testing.assert_array_equal(np.concatenate([first[key], second[key]]), whole[key])


def test_reading_resumes_exactly(numbered):
  whole = list(itertools.islice(iterate(numbered, batch_size=3), 20))
  for stop in (0, 5, 13):
    iterator = iterate(numbered, batch_size=3)
    list(itertools.islice(iterator, stop))
    state = json.loads(json.dumps(iterator.get_state()))
    next(iterator)
    resumed = iterate(numbered, batch_size=3)
    resumed.set_state(state)
    for ours, theirs in zip(itertools.islice(resumed, 20 - stop), whole[stop:], strict=True):
      for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
