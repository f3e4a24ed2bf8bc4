"""The cache of a real tokenizer's codes, and training from it."""

import json
import os
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from imgtx_jax.benchmark import common
from imgtx_jax.cli.command import Interrupted
from imgtx_jax.config import validation
from imgtx_jax.data import code_cache, pipeline, transforms
from imgtx_jax.data.sources import ArraySource
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.stages import build
from imgtx_jax.training import build_code_cache, checkpoint, loop, metric_writer

CLASSES = 3
COUNT = 60


@pytest.fixture
def config(tiny_config):
  tiny_config.parallel.mode = "jit"  # whose programs the compilation cache keeps
  tiny_config.generator.taps = ()
  tiny_config.data.flip = True
  tiny_config.pretrain.code_cache = "auto"
  tiny_config.pretrain.cache_scales = (1.25,)
  tiny_config.evaluate_steps = 0
  return tiny_config


@pytest.fixture
def images(smooth_images):
  labels = np.arange(COUNT, dtype=np.int32) % CLASSES
  names = [f"{i}.png" for i in range(COUNT)]
  noise = np.random.default_rng(0).integers(0, 20, (COUNT, 24, 24, 3), np.uint8)
  waves = smooth_images(CLASSES, 24)[labels] // 2 + noise  # of one class alike: soon learnt
  return ArraySource(waves, labels, names, ["a", "b", "c"])


@pytest.fixture
def small_shards(monkeypatch):
  monkeypatch.setattr(code_cache, "SHARD_BYTES", 3000)


@pytest.fixture(scope="module")
def results(fresh_tiny_config):
  """A tokenizer with random weights, as the stages before pretrain would leave it."""
  config = fresh_tiny_config()
  config.generator.taps = ()
  return common.random_sources(config, "pretrain", CLASSES)


def inputs_of(config, results):
  return build("pretrain", config, CLASSES).inputs(results)


def test_without_the_key_batches_hold_images(config, results):
  config.pretrain.code_cache = ""
  assert inputs_of(config, results) is None
  assert build("tokenizer", config, CLASSES).inputs({}) is None
  assert build("finetune", config, CLASSES).inputs(results) is None


def test_codes_are_those_that_the_tokenizer_gives(config, results, images, tmp_path, capsys):
  source = build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)
  text = capsys.readouterr().out
  assert f"60 images × 10 crops × 16 codes take 0.0194 MB on disk, in {tmp_path / 'codes'};" in text
  crop_set = transforms.make_crop_set(16, "ten", (1.25,), flip=True)
  tokenizer = build("pretrain", config, CLASSES).tokenizer
  for i in (0, 31, 59):
    square = transforms.resize_squares(images[i]["image"], crop_set)[None]
    crops = [transforms.take_crop(square, row, 16) for row in crop_set.table]
    crops = transforms.normalize(np.concatenate(crops))
    expected = tokenizer.encode(results["tokenizer"]["ema"], crops)
    np.testing.assert_array_equal(source[i]["codes"], expected)
    assert source[i]["label"] == i % CLASSES


def test_a_cache_is_made_once(config, results, images, tmp_path, monkeypatch, capsys, small_shards):
  inputs = inputs_of(config, results)._replace(folder=str(tmp_path / "elsewhere"))
  first = build_code_cache.prepare(inputs, images, config, tmp_path / "work")
  assert "shards to make: 6 of 6" in capsys.readouterr().out
  os.chmod(tmp_path / "elsewhere", 0o500)  # to read it, nothing is written
  monkeypatch.setattr(build_code_cache, "fill", None)
  again = build_code_cache.prepare(inputs, images, config, tmp_path / "work")
  assert capsys.readouterr().out.startswith("codes: checking 0.0194 MB in")
  for i in range(COUNT):
    np.testing.assert_array_equal(first[i]["codes"], again[i]["codes"])
  os.chmod(tmp_path / "elsewhere", 0o700)


@pytest.mark.parametrize(
  ("what", "words"),
  [
    ("weights", "tokenizer.weights is"),
    ("heads", "tokenizer.encoder.num_heads is 2 there and 1 here"),
    ("names", "data.names is"),
    ("classes", "data.names is"),
    ("fewer", "data.images is 60 there and 59 here"),
    ("scales", r"scales is \[1.25\] there and \[1.0\] here"),
    ("flip", "flip is True there and False here"),
  ],
)
def test_another_tokenizer_or_data_set_is_refused(config, results, images, tmp_path, what, words):
  cache = code_cache.CodeCache(
    tmp_path / "codes",
    build_code_cache.fingerprint(inputs_of(config, results), images, config),
    code_cache.make_layout(COUNT, 10, 16, 32),
  )
  cache.claim()
  if what == "weights":
    results = jax.tree.map(np.copy, results)
    results["tokenizer"]["ema"]["quantizer"]["codebook"][3, 1] += 1e-3
  elif what == "heads":
    config.encoder.num_heads = 1
  elif what == "names":
    images.names[7] = "other.png"
  elif what == "classes":
    images.class_names[0] = "other"
  elif what == "fewer":
    images.images = images.images[1:]
  elif what == "scales":
    config.pretrain.cache_scales = (1.0,)
  elif what == "flip":
    config.data.flip = False
  with pytest.raises(UserError, match=f"something else .*{words}"):
    build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)


def test_what_only_training_needs_is_not_in_the_fingerprint(config, results, images):
  before = build_code_cache.fingerprint(inputs_of(config, results), images, config)
  config.remat = "full"
  config.quantizer.commitment = 1.0
  config.pretrain.batch_size = 32
  config.data.path = "elsewhere"
  assert build_code_cache.fingerprint(inputs_of(config, results), images, config) == before


def test_a_disk_that_is_too_small_is_refused_at_once(
  config, results, images, tmp_path, monkeypatch
):
  free = types.SimpleNamespace(free=10_000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
  with pytest.raises(UserError, match="needs 0.0194 MB and the disk of .* has 0.01 MB free: free"):
    build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)
  assert not list((tmp_path / "codes").iterdir())


def test_a_folder_that_cannot_be_written_is_named(config, results, images, tmp_path):
  (tmp_path / "codes").write_text("a file")
  with pytest.raises(UserError, match="codes cannot be written"):
    build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)


def test_a_signal_stops_the_build_and_finished_shards_stay(
  config, results, images, tmp_path, monkeypatch, small_shards
):
  inputs = inputs_of(config, results)
  in_order = pipeline.in_order

  def interrupted(*args, **options):
    for number, example in enumerate(in_order(*args, **options)):
      if number == 35:
        os.kill(os.getpid(), signal.SIGTERM)
      yield example

  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "in_order", interrupted)
    with pytest.raises(Interrupted, match="codes: stopped by SIGTERM after .* of 60") as stopped:
      build_code_cache.prepare(inputs, images, config, tmp_path)
  assert stopped.value.signal_number == signal.SIGTERM
  here = len(list((tmp_path / "codes").glob("shard-*")))
  assert 0 < here < 6
  assert len(build_code_cache.prepare(inputs, images, config, tmp_path)) == COUNT


# -- Training --------------------------------------------------------------------------------------


def trainer_of(config, results, images, directory, source):
  stage = build("pretrain", config, CLASSES)
  # Evaluation is the same without a cache: its programs need not be compiled here.
  stage.evaluators, stage.pictures = dict, lambda *_: {}
  return loop.Trainer(
    stage,
    config=config,
    directory=directory / "1-pretrain",
    restored=results,
    inputs=source,
    training=images,
    held_out=images,
    parallel=sharding.make_parallel(config.parallel.mode),
  )


class Killed(Exception):
  """Stands for a kill."""


def kill_before(batch, monkeypatch):
  """The training iterator raises Killed before that batch (from 0)."""
  make = pipeline.train_iterator

  class Watched:
    def __init__(self, *args, **options):
      self.inner, self.left = make(*args, **options), batch
      self.get_state, self.set_state = self.inner.get_state, self.inner.set_state

    def __next__(self):
      self.left -= 1
      if self.left < 0:
        raise Killed
      return next(self.inner)

  monkeypatch.setattr(pipeline, "train_iterator", Watched)


def outcome(directory):
  lines = metric_writer.read_metrics(directory / "1-pretrain")
  state = checkpoint.load(directory / "1-pretrain" / "checkpoints")[0]
  return [{k: v for k, v in line.items() if k != "seconds"} for line in lines], state


def test_training_learns_and_a_resumed_run_equals_an_uninterrupted_one(
  config, results, images, tmp_path, monkeypatch
):
  config.pretrain.steps, config.checkpoint_steps, config.log_steps = 24, 8, 4
  config.pretrain.optimizer.learning_rate = 1e-2
  config.picture_steps = 0
  source = build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  trainer_of(config, results, images, whole, source).run()
  lines, state = outcome(whole)
  losses = [line["train/loss"] for line in lines if "train/loss" in line]
  assert losses[-1] < 0.8 * losses[0]

  with monkeypatch.context() as patch:
    kill_before(15, patch)
    with pytest.raises(Killed):
      trainer_of(config, results, images, broken, source).run()
  # Opened anew, as by another process.
  source = build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)
  resumed = trainer_of(config, results, images, broken, source)
  assert resumed.start == 8
  resumed.run()
  ours, theirs = outcome(broken)
  assert ours == lines
  jax.tree.map(np.testing.assert_array_equal, theirs, state)
  summary = json.loads((broken / "1-pretrain" / "summary.json").read_text())
  assert summary["steps"] == 24 and summary["corrupt_images"] == 0


def test_the_step_takes_the_codes_of_the_cache(config, results, images, tmp_path):
  source = build_code_cache.prepare(inputs_of(config, results), images, config, tmp_path)
  options = dict(batch_size=16, image_size=16, crop="center", min_scale=1.0, seed=0, threads=0)
  batch = next(pipeline.train_iterator(source, **options))
  cached = {(tuple(c), source[i]["label"]) for i in range(COUNT) for c in source[i]["codes"]}
  rows = zip(batch["codes"], batch["label"], strict=True)
  assert all((tuple(codes), label) in cached for codes, label in rows)

  stage = build("pretrain", config, CLASSES)
  state = stage.init(jax.random.key(0), (16, 16, 16, 3), results)
  step = jax.jit(lambda batch: stage.step(state, batch, jax.random.key(1), axis=None))
  counts = step(batch)[0].variables["code_counts"]
  expected = np.bincount(batch["codes"].reshape(-1), minlength=32)
  np.testing.assert_allclose(counts, expected, atol=1e-4)


# -- The keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("cache_crops", "five", "'five' is not one of: ten, center"),
    ("cache_scales", (1.1, 0.9), "must hold numbers of 1 or more"),
    ("cache_scales", (), "must hold numbers of 1 or more"),
  ],
)
def test_bad_keys(config, key, value, words):
  config.pretrain[key] = value
  with pytest.raises(UserError, match=f"config.pretrain.{key}=.*{words}"):
    validation.check(config)
