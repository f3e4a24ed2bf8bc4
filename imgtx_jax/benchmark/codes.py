"""Measures the cache of codes: python -m imgtx_jax.benchmark codes --config FILE.py[:arg]

Builds parts of the cache that config.pretrain asks for, of the config's own images, in a temporary
folder, in turn with the encoder alone on images already in memory; the tokenizer's weights are
random. Prints one JSON object; rates are in crops:

  images_per_second            reading, cropping, encoding and writing: the median of the rounds
  encoder_images_per_second    the encoder alone, as many images at a time: the median of the rounds
  ratio                        of the two: the median of ratios, each of a round over the encoder's
                               just before and after it
  processor_time_ratio         the same of images per second of processor time, on a CPU: what the
                               build adds, without the noise of a busy machine; else null
  memory_beyond_encoder_bytes  resident at most while building, over that of the encoder alone
  device_memory_beyond_encoder_bytes   the same of the first accelerator; null on a CPU
  disk_bytes                   of the whole cache
"""

import itertools
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.data import code_cache, pipeline, sources, transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.stages import build
from imgtx_jax.training import build_code_cache, code_encoding

ROUNDS = 9
ROUND_SECONDS = 3.0
_STAGE = "pretrain"


def measure(config, untrained):
  """The figures of the module's docstring; untrained(config, stage, classes): random weights of the
  stages before that one."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config[_STAGE].code_cache = "auto"
  validation.check(config)
  images = sources.open_source(config.data.source, split="train", path=config.data.path)
  classes = images.num_classes
  inputs = build(_STAGE, config, classes).inputs(untrained(config, _STAGE, classes))
  plan = build_code_cache.plan_crops(inputs, config)
  layout = code_cache.make_layout(
    len(images), len(plan.table), inputs.num_codes, inputs.codebook_size
  )
  batch, at_once = build_code_cache.batch_sizes(inputs, plan)
  alone = _alone(inputs, images, plan, batch * at_once)
  encode = build_code_cache.compile_encoder(inputs, plan, layout.dtype)
  np.asarray(encode(np.zeros((batch, *plan.square_shape), np.uint8)))
  # Parts of as many examples as the encoder alone takes ROUND_SECONDS for, if there are so many.
  examples = int(2 * alone(ROUND_SECONDS / 2) / layout.crops) // batch * batch
  layout = layout._replace(shard_examples=min(max(batch, examples), layout.examples))
  options = dict(plan=plan, batch=batch, threads=config.data.threads, report=lambda _: None)

  def fill(shard):
    with tempfile.TemporaryDirectory() as folder:
      code_encoding.build(
        code_cache.CodeCache(folder, {}, layout), [shard], images, encode, **options
      )
    return len(layout.span(shard)) * layout.crops

  shards = range(min(ROUNDS, layout.examples // layout.shard_examples))
  result = _rounds(lambda: alone(ROUND_SECONDS), [lambda s=s: fill(s) for s in shards])
  return result | {
    "disk_bytes": layout.bytes,
    "images": layout.examples,
    "crops": layout.crops,
    "codes": layout.codes,
    "batch": batch,
    "encoder_batch": batch * at_once,
    "threads": config.data.threads,
    "dtype": configs.compute_dtype(config),
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def _alone(inputs, images, plan, batch):
  """A function (seconds) → images that the encoder took in about that long, from memory; the next
  batch is dispatched before the last one is waited for, as in the build."""
  options = dict(crop=lambda x: transforms.center_crop(x, plan.size), threads=0, ahead=0)
  examples = pipeline.in_order(images, np.arange(min(batch, len(images))), **options)
  crops = np.stack([e["image"] for e in examples if "image" in e])
  batches = [np.resize(x, (batch, *crops.shape[1:])) for x in (crops, crops[::-1])]
  encode = sharding.map_local(inputs.encode, inputs.params)
  np.asarray(encode(batches[0]))

  def run(seconds):
    began, done, running = time.monotonic(), 0, encode(batches[0])
    while time.monotonic() - began < seconds:
      following = encode(batches[(done + 1) % 2])
      np.asarray(running)
      running, done = following, done + 1
    np.asarray(running)
    return (done + 1) * batch

  return run


def _rounds(alone, builds):
  """Rates and memory of functions that return how many images they took, called in turn."""
  encoder, whole = [_watch(alone)], []
  on_device = _device_bytes()
  for build_part in builds:
    whole.append(_watch(build_part))
    encoder.append(_watch(alone))
  ratios = _ratios(whole, encoder, "rate")
  on_cpu = jax.default_backend() == "cpu"
  work = statistics.median(_ratios(whole, encoder, "processor_rate")) if on_cpu else None
  return {
    "images_per_second": statistics.median(r.rate for r in whole),
    "encoder_images_per_second": statistics.median(r.rate for r in encoder),
    "ratio": statistics.median(ratios),
    "ratios": ratios,
    "processor_time_ratio": work,
    "memory_beyond_encoder_bytes": max(r.resident for r in whole) - encoder[0].resident,
    "device_memory_beyond_encoder_bytes": on_device and _device_bytes() - on_device,
  }


def _ratios(whole, encoder, figure):
  """A figure of every build over the mean of the encoder's just before and after it."""
  around = [statistics.mean(getattr(r, figure) for r in p) for p in itertools.pairwise(encoder)]
  return [getattr(r, figure) / a for r, a in zip(whole, around, strict=True)]


class _Run(NamedTuple):
  """Images a second, and a second of processor time; bytes of this process resident at most."""

  rate: float
  processor_rate: float
  resident: int


def _watch(function):
  """The _Run of a function that returns how many images it took."""
  peak, stop = 0, threading.Event()

  def look():
    nonlocal peak
    while not stop.wait(0.02):
      pages = int(Path("/proc/self/statm").read_text().split()[1])
      peak = max(peak, pages * resource.getpagesize())

  thread = threading.Thread(target=look)
  thread.start()
  began = time.monotonic(), time.process_time()
  try:
    images = function()
    seconds = time.monotonic() - began[0], time.process_time() - began[1]
  finally:
    stop.set()
    thread.join()
  return _Run(images / seconds[0], images / seconds[1], peak)


def _device_bytes():
  """The most that was in use of the first accelerator so far; None on a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  return stats["peak_bytes_in_use"] if stats else None
