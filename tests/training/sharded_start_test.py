"""Under fsdp no device holds more than its part of a state: at a start, a resume and a fallback."""

import threading
import time

import jax
import numpy as np
import pytest

from imgtx_jax.benchmark import common
from imgtx_jax.config import defaults as configs
from imgtx_jax.data.sources import ArraySource
from imgtx_jax.distributed import sharding
from imgtx_jax.stages import build
from imgtx_jax.stages.tokenizer import TokenizerStage
from imgtx_jax.training import collapse_monitor, loop

DEVICES, CLASSES = 4, 3


@pytest.fixture
def config(tiny_config, monkeypatch):
  """Networks whose weights are much larger than a batch, split over four devices."""
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 256)
  for name in ("encoder", "generator", "gpt", "discriminator"):
    tiny_config[name].update(dict(width=128, mlp_dim=256))
  tiny_config.generator.taps = ()
  tiny_config.parallel.update(dict(mode="jit", fsdp=DEVICES))
  tiny_config.evaluate_steps = tiny_config.picture_steps = 0
  tiny_config.fd_images = 0
  for stage in ("tokenizer", "pretrain", "finetune"):
    tiny_config[stage].steps = 4
    if "lpips_weight" in tiny_config[stage]:
      tiny_config[stage].lpips_weight = 0.0
  tiny_config.checkpoint_steps = tiny_config.log_steps = 2
  return tiny_config


def live_bytes():
  """{device: bytes of the live arrays on it}, of several arrays over one buffer those of one."""
  buffers = {}
  for x in jax.live_arrays():
    try:
      for shard in x.addressable_shards:
        buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    except RuntimeError as error:  # the other thread has just let go of it
      assert "deleted" in str(error), error
  total = dict.fromkeys(jax.devices(), 0)
  for (device, _), size in buffers.items():
    total[device] += size
  return total


class Watch:
  """The most bytes of new live arrays that any one device has held within the block."""

  def __enter__(self):
    self.before, self.most, self.stop = live_bytes(), 0, threading.Event()
    self.thread = threading.Thread(target=self._look)
    self.thread.start()
    return self

  def __exit__(self, *_):
    self.stop.set()
    self.thread.join()

  def _look(self):
    while not self.stop.is_set():
      now = live_bytes()
      self.most = max(self.most, *(now[d] - self.before[d] for d in now))
      time.sleep(1e-3)


def make_trainer(config, name, results, directory):
  draw = np.random.default_rng(0)
  images = draw.integers(0, 256, (32, 16, 16, 3), np.uint8)
  labels = np.arange(32, dtype=np.int32) % CLASSES
  source = ArraySource(images, labels, [str(i) for i in range(32)], ["a", "b", "c"])
  devices = sharding.make_parallel(
    config.parallel.mode, fsdp=config.parallel.fsdp, rules=configs.sharding_rules(config)
  )
  return loop.Trainer(
    build(name, config, CLASSES),
    config=config,
    directory=directory / f"1-{name}",
    restored=results,
    inputs=source,
    training=source,
    held_out=source,
    parallel=devices,
  )


def assert_small(most, state):
  """That `most` bytes are a quarter of the state, and a little more."""
  sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state)]
  quarter = sum(sizes) / DEVICES
  assert 0.9 * quarter < most <= 1.2 * quarter + max(sizes), (most, quarter, max(sizes))


@pytest.mark.parametrize("name", ["tokenizer", "pretrain", "finetune"])
def test_a_start_and_a_resume(config, tmp_path, name):
  results = common.random_sources(config, name, CLASSES)
  with Watch() as start:
    trainer = make_trainer(config, name, results, tmp_path)
  assert_small(start.most, trainer.state)
  first = jax.tree.map(np.asarray, trainer.state)
  eager = trainer.stage.init(trainer.root, (16, 16, 16, 3), results)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, eager)
  del eager
  trainer.began, trainer.start = time.monotonic(), 3
  trainer._save(3, wait=True)
  trainer._close()
  trainer.state = None
  with Watch() as resume:
    again = make_trainer(config, name, results, tmp_path)
  assert again.start == 3
  assert_small(resume.most, again.state)
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, again.state), first)
  again._close()


def test_a_fallback(config, tmp_path, monkeypatch):
  config.guard = "retry"
  monkeypatch.setattr(collapse_monitor, "LINES", 1)
  looks = iter([None, "made on purpose"])
  monkeypatch.setattr(TokenizerStage, "guard", lambda self, step, means: next(looks, None))
  trainer = make_trainer(config, "tokenizer", {}, tmp_path)
  state = trainer.shapes
  with Watch() as run:
    run.before = dict.fromkeys(run.before, 0)
    trainer.run()
  assert len(trainer.guard.collapses) == 1 and "step 2" in trainer.guard.collapses[0]
  assert float(trainer.state.rate) == 0.5
  assert_small(run.most, state)
