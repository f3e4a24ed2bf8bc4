"""Order, exact resume, processes, padding, and what happens to corrupt images."""

import itertools
import json
import logging

import grain
import numpy as np
import pytest
from PIL import Image

from imgtx_jax.data import pipeline
from imgtx_jax.data.pipeline import Companion, corrupt_images, eval_batches, stack, train_iterator
from imgtx_jax.data.sources import ArraySource, open_source
from imgtx_jax.data.unreadable import CorruptImages
from imgtx_jax.errors import UserError


def numbered_source(count):
  """Image i is 4x4, all bytes i; its label is i too."""
  numbers = np.arange(count, dtype=np.uint8)
  images = np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 3))
  names = [str(i) for i in range(count)]
  return ArraySource(images, numbers, names, names)


def numbered_folder(root, count, corrupt=()):
  """A folder source of `count` 8x6 PNGs whose red channel is their number; some are broken."""
  for i in range(count):
    path = root / "train" / "ab"[i % 2] / f"{i:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (i, 0, 0)).save(path)
    if i in corrupt:
      path.write_bytes(path.read_bytes()[:40])
  for c in "ab":
    path = root / "val" / c / "0.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)
  return open_source("folder", split="train", path=str(root))


def iterate(source, **options):
  defaults = {"batch_size": 4, "image_size": 4, "crop": "center", "min_scale": 1.0}
  return train_iterator(source, **{**defaults, "seed": 0, "threads": 2, **options})


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def numbers(batches):
  return np.concatenate([b["image"][:, 0, 0, 0] for b in batches])


def assert_same(batches, others):
  assert len(batches) == len(others)
  for a, b in zip(batches, others, strict=True):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_batches_are_uint8_images_and_int32_labels(tmp_path):
  for source in (numbered_source(10), numbered_folder(tmp_path, 6)):
    batch = next(iterate(source))
    assert batch["image"].shape == (4, 4, 4, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32


def test_every_epoch_is_another_permutation():
  epochs = numbers(take(iterate(numbered_source(20)), 15)).reshape(3, 20)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(20), (3, 1)))
  assert len({tuple(e) for e in epochs}) == 3


def test_batches_may_be_larger_than_the_source():
  got = numbers(take(iterate(numbered_source(3), batch_size=6), 2))
  np.testing.assert_array_equal(np.bincount(got), [4, 4, 4])


def test_the_seed_decides_order_and_crops_and_threads_do_not(tmp_path):
  source = numbered_folder(tmp_path, 20)
  random = {"crop": "random", "min_scale": 0.2}
  first = take(iterate(source, **random), 12)
  assert_same(first, take(iterate(source, threads=0, **random), 12))
  assert_same(first, take(iterate(source, threads=5, **random), 12))
  assert (numbers(first) != numbers(take(iterate(source, seed=1, **random), 12))).any()


def test_crops_differ_between_epochs_and_examples():
  ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, None, :, None], (1, 8, 60, 3))
  source = ArraySource(ramp, [0], ["ramp"], ["ramp"])
  crops = numbers(take(iterate(source, crop="random", image_size=8), 5))
  assert len(set(crops)) > 10


@pytest.mark.parametrize("kind", ["folder", "emoji"])
def test_resume_is_exact_in_the_middle_of_an_epoch_with_batches_prefetched(tmp_path, kind):
  if kind == "folder":
    source = numbered_folder(tmp_path, 30, corrupt=[7])  # a skipped image moves the rows
  else:
    source = open_source("emoji", split="train")
  options = {"crop": "random", "min_scale": 0.3, "threads": 4}
  whole = take(iterate(source, **options), 20)
  for stop in (0, 3, 11):  # of 7.5 batches an epoch
    iterator = iterate(source, **options)
    assert_same(take(iterator, stop), whole[:stop])
    state = json.loads(json.dumps(iterator.get_state()))
    ahead = take(iterator, 2)  # taking the state disturbs nothing
    assert_same(ahead, whole[stop : stop + 2])
    resumed = iterate(source, **options)
    next(resumed)  # fills its own buffer first
    resumed.set_state(state)
    assert_same(take(resumed, 20 - stop), whole[stop:])


def test_chunks_are_read_as_a_stream_and_resumed_anywhere():
  class Numbers(grain.MapDataset):
    def __len__(self):
      return 11

    def __getitem__(self, index):
      return None if index in (2, 9) else index

  def read(state=None):
    examples = iter(pipeline._read(Numbers(), 2, 3))  # chunks of 3
    if state:
      examples.set_state(state)
    return examples

  whole, expected = read(), [0, 1, 3, 4, 5, 6, 7, 8, 10]
  for done, number in enumerate(expected):
    assert list(read(whole.get_state())) == expected[done:]
    assert next(whole) == number
  assert list(whole) == [] and whole.get_state() == {"next_index": 11}


@pytest.mark.parametrize("count", [20, 23])
def test_two_processes_share_the_batches_of_one(tmp_path, count):
  source = numbered_folder(tmp_path, count)
  options = {"crop": "random", "min_scale": 0.3, "batch_size": 4}
  alone = take(iterate(source, **options), 2 * count)
  parts = [
    take(iterate(source, **options, process_index=p, process_count=2), 2 * count) for p in (0, 1)
  ]
  assert parts[0][0]["image"].shape[0] == 2
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)
  ]
  assert_same(joined, alone)


def test_two_processes_lose_and_repeat_nothing_over_an_epoch():
  source = numbered_source(40)
  parts = [numbers(take(iterate(source, process_index=p, process_count=2), 10)) for p in (0, 1)]
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(40))


def test_a_batch_must_divide_among_processes():
  with pytest.raises(UserError, match="batch_size 5 .* 2 processes"):
    iterate(numbered_source(4), batch_size=5, process_count=2)
  with pytest.raises(UserError, match="batch_size 5 .* 2 processes"):
    eval_batches(numbered_source(4), batch_size=5, image_size=4, process_count=2)


def test_an_unknown_crop_is_refused():
  with pytest.raises(UserError, match='crop is "ten"'):
    iterate(numbered_source(4), crop="ten")


def test_corrupt_images_are_skipped_counted_and_named_once(tmp_path, caplog):
  source = numbered_folder(tmp_path, 40, corrupt=[5, 31])  # too few to stop: 2, not 3
  with caplog.at_level(logging.WARNING):
    got = numbers(take(iterate(source), 38))  # four epochs of 38 intact images
  intact = ~np.isin(np.arange(40), [5, 31])
  np.testing.assert_array_equal(np.bincount(got, minlength=40), 4 * intact)
  report = corrupt_images(source)
  assert report["count"] == 2 and sorted(report["names"]) == ["b/005.png", "b/031.png"]
  assert report["seen"] >= 4 * 40
  warned = [r.getMessage() for r in caplog.records if "b/0" in r.getMessage()]
  assert sorted(w.split()[3] for w in warned) == ["b/005.png", "b/031.png"]


def test_an_image_that_vanishes_counts_as_corrupt(tmp_path):
  source = numbered_folder(tmp_path, 12)
  (tmp_path / "train" / "a" / "004.png").unlink()
  assert 4 not in numbers(take(iterate(source), 11))
  assert corrupt_images(source)["names"] == ["a/004.png"]


@pytest.mark.parametrize("threads", [0, 2])
def test_more_than_one_percent_of_corrupt_images_stops_training(tmp_path, threads):
  source = numbered_folder(tmp_path, 40, corrupt=[3, 10, 21])
  with pytest.raises(UserError, match="3 unreadable .*limit of 1%.*for example .*/0") as error:
    take(iterate(source, threads=threads), 12)
  assert "\n" not in str(error.value)


def test_a_source_of_nothing_but_corrupt_images_stops(tmp_path):
  source = numbered_folder(tmp_path, 2, corrupt=[0, 1])
  with pytest.raises(UserError, match="2 unreadable"):
    next(iterate(source))


def test_the_limit_is_one_percent_of_what_was_seen():
  def bad_allowed(total, seen):
    found = CorruptImages()
    for _ in range(seen):
      found.add_intact()
    for i in range(total):
      try:
        found.add(i, str(i), "", total)
      except UserError:
        return i
    return total

  assert bad_allowed(total=10**6, seen=0) == 10  # of the first thousand
  assert bad_allowed(total=10**6, seen=50_000) == 505
  assert bad_allowed(total=500, seen=0) == 5
  assert bad_allowed(total=500, seen=10**5) == 5  # epochs do not raise it
  assert bad_allowed(total=40, seen=0) == 2


def evaluate(source, **options):
  return list(eval_batches(source, **{"batch_size": 4, "image_size": 4, **options}))


def test_evaluation_pads_the_tail_and_masks_it():
  batches = evaluate(numbered_source(10))
  assert [b["mask"].tolist() for b in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
  for b in batches:
    assert b["image"].shape == (4, 4, 4, 3) and b["image"].dtype == np.uint8
    assert b["label"].dtype == np.int32 and b["mask"].dtype == np.float32
  np.testing.assert_array_equal(numbers(batches)[:10], np.arange(10))
  np.testing.assert_array_equal(batches[0]["label"], range(4))
  assert not batches[-1]["image"][2:].any()


@pytest.mark.parametrize("count", [8, 9, 10, 3])
def test_every_process_evaluates_its_block_of_each_batch(count):
  source = numbered_source(count)
  alone = evaluate(source)
  parts = [evaluate(source, process_index=p, process_count=2) for p in (0, 1)]
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)
  ]
  assert_same(joined, alone)
  assert sum(b["mask"].sum() for b in joined) == count


def test_evaluation_limit_spreads_over_the_source():
  batches = evaluate(numbered_source(100), limit=10)
  np.testing.assert_array_equal(numbers(batches)[:10], np.arange(0, 100, 10))
  assert sum(b["mask"].sum() for b in batches) == 10 and len(batches) == 3
  assert len(evaluate(numbered_source(5), limit=99)) == 2


def test_evaluation_masks_corrupt_images(tmp_path):
  source = numbered_folder(tmp_path, 10, corrupt=[4])
  batches = evaluate(source)
  mask = np.concatenate([b["mask"] for b in batches])
  bad = source.files.index("a/004.png")
  assert mask.tolist() == [float(i != bad and i < 10) for i in range(12)]
  assert numbers(batches)[bad] == 0 and corrupt_images(source)["count"] == 1


def test_evaluation_stops_above_the_limit_too(tmp_path):
  source = numbered_folder(tmp_path, 30, corrupt=[1, 2, 3])
  with pytest.raises(UserError, match="3 unreadable"):
    evaluate(source)


# -- Companions ------------------------------------------------------------------------------------


def companions(source, held_out=None):
  return {"style": Companion(source, held_out or source, "random", 0.3)}


def test_companions_have_an_order_of_their_own_and_one_position(tmp_path):
  first, second = numbered_source(12), numbered_folder(tmp_path, 20, corrupt=[7])
  options = {"companions": companions(second)}
  whole = take(iterate(first, **options), 30)
  beside = np.concatenate([b["style"][:, 0, 0, 0] for b in whole])
  assert whole[0]["style"].shape == (4, 4, 4, 3)
  assert set(numbers(whole)) == set(range(12)) and len(set(beside)) == 19  # without the broken one
  pairs = set(zip(numbers(whole).tolist(), beside.tolist(), strict=True))
  assert len(pairs) > 60  # of 120: new pairs in every epoch
  for stop in (0, 3, 11):
    iterator = iterate(first, **options)
    take(iterator, stop)
    resumed = iterate(first, **options)
    next(resumed)
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    assert_same(take(resumed, 30 - stop), whole[stop:])


def test_two_processes_share_pairs_too():
  options = {"companions": companions(numbered_source(7))}
  alone = take(iterate(numbered_source(12), **options), 9)
  parts = [
    take(iterate(numbered_source(12), **options, process_index=p, process_count=2), 9)
    for p in (0, 1)
  ]
  joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
  assert_same(joined, alone)


def test_evaluation_repeats_companions_and_masks_both(tmp_path):
  few = numbered_folder(tmp_path, 3, corrupt=[1])
  batches = evaluate(numbered_source(7), companions=companions(numbered_source(2), few))
  bad = few.files.index("b/001.png")
  mask = np.concatenate([b["mask"] for b in batches])
  assert mask.tolist() == [float(i < 7 and i % 3 != bad) for i in range(len(mask))]
  assert batches[0]["style"].shape == (4, 4, 4, 3)
  intact = [few[i]["name"] for i in range(3) if i != bad]
  seen = np.concatenate([b["style"][:, 0, 0, 0] for b in batches])[:7]
  assert set(seen[mask[:7] > 0]) == {int(name[2:5]) for name in intact}


def test_stacks_begin_where_jax_need_not_copy():
  examples = [{"image": np.full((3, 5), i, np.uint8), "label": np.int32(i)} for i in range(3)]
  batch = stack(examples)
  assert all(x.ctypes.data % 64 == 0 for x in batch.values())
  assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
  np.testing.assert_array_equal(batch["image"][:, 2, 4], [0, 1, 2])
  np.testing.assert_array_equal(batch["label"], [0, 1, 2])
