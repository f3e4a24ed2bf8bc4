"""The cache of codes that a stage trains on: opened, gone on with, or made before it trains."""

import hashlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import jax

from imgtx_jax.cli.command import Interrupted
from imgtx_jax.cli.progress import Display
from imgtx_jax.cli.stop_signals import StopSignals
from imgtx_jax.data import code_cache, transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import explain_disk
from imgtx_jax.training import checksums, code_encoding


def prepare(inputs, images, config, directory):
  """A data.codes.CodeSource of the codes that inputs (stages.stage.CodeInputs) asks for.

  images: the training source; directory: the work directory. Makes what is missing, each process
  its shards. Raises UserError for a cache of something else and a full disk, and Interrupted when a
  signal asks to stop (a process of several is stopped by SIGINT only); finished shards stay.
  """
  folder = Path(directory) / "codes" if inputs.folder == "auto" else Path(inputs.folder)
  plan = plan_crops(inputs, config)
  layout = code_cache.make_layout(
    len(images), len(plan.table), inputs.num_codes, inputs.codebook_size
  )
  cache = code_cache.CodeCache(folder, fingerprint(inputs, images, config), layout)
  if cache.index:
    print(f"codes: checking {cache.layout.bytes / 1e6:.3g} MB in {folder}", flush=True)
  missing = cache.missing(jax.process_index(), jax.process_count())
  everywhere = sum(int(n) for n in checksums.gather(str(len(missing)).encode()))
  if everywhere or not cache.complete:
    _announce(cache, everywhere)
    if jax.process_index() == 0:
      cache.claim()
    if missing:
      _build(cache, missing, inputs, images, config, plan)
    checksums.gather(b"all shards are written")
    if jax.process_index() == 0:
      cache.finish()
    checksums.gather(b"the index is written")
  return cache.open(images)


def plan_crops(inputs, config):
  """The transforms.CropPlan of what inputs asks for."""
  data = config.data
  return transforms.plan_crops(data.image_size, inputs.crops, inputs.scales, data.flip)


def fingerprint(inputs, images, config):
  """What decides the codes, as {name: plain value}: the tokenizer's weights and hyperparameters,
  the images and their crops. Images count by name, not by content."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(inputs.params)
  sums = checksums.checksums({jax.tree_util.keystr(path): x for path, x in leaves})
  names = hashlib.sha256("\n".join(images.class_names).encode())
  for index in range(len(images)):
    names.update(f"\n{images.name(index)}".encode())
  return {
    "format": 1,
    **{f"tokenizer.{name}": value for name, value in inputs.hyperparameters.items()},
    "tokenizer.weights": hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16],
    "image_size": config.data.image_size,
    "crops": inputs.crops,
    "scales": list(inputs.scales),
    "flip": config.data.flip,
    "data.source": config.data.source,
    "data.split": "train",
    "data.images": len(images),
    "data.names": names.hexdigest()[:16],
  }


def batch_sizes(inputs, plan):
  """(B, at_once) of encoding.batch_sizes: about as many images a step as the stage's own takes."""
  images = inputs.batch_size // jax.process_count()
  return code_encoding.batch_sizes(images, plan, jax.local_device_count())


def compile_encoder(inputs, plan, dtype):
  """squares [B, sides, S, S, 3] → codes [B, C, N] of dtype, as encoding.build takes it, on this
  process's devices."""
  _, at_once = batch_sizes(inputs, plan)
  encode = code_encoding.encode_crops(inputs.encode, plan, dtype, at_once)
  return sharding.map_local(encode, inputs.params)


def _announce(cache, missing):
  """What is going to be made, and UserError if the disk is too small for it."""
  layout = cache.layout
  print(
    f"codes: {layout.examples} images × {layout.crops} crops × {layout.codes} codes take "
    f"{layout.bytes / 1e6:.3g} MB on disk, in {cache.folder}; shards to make: {missing} of "
    f"{layout.shards}",
    flush=True,
  )
  with explain_disk(cache.folder):
    cache.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.folder).free
  needed = missing * layout.shard_examples * layout.example_bytes
  if free < needed:
    raise UserError(
      f"the code cache needs {needed / 1e6:.3g} MB and the disk of {cache.folder} has "
      f"{free / 1e6:.3g} MB free: free some, name another folder, or use fewer crops or scales; "
      "nothing that was saved before is lost"
    )


def _build(cache, shards, inputs, images, config, plan):
  encode = compile_encoder(inputs, plan, cache.layout.dtype)
  total = sum(len(cache.layout.span(shard)) for shard in shards)
  with StopSignals() as stop, Display("codes", total, 0) as display:
    code_encoding.build(
      cache,
      shards,
      images,
      encode,
      plan=plan,
      batch=batch_sizes(inputs, plan)[0],
      threads=config.data.threads,
      report=_Progress(display, total, len(plan.table), stop, cache.folder).add,
    )


class _Progress:
  """Shows the rate in crops, and stops the build when a signal asks to."""

  def __init__(self, display, total, crops, stop, folder):
    self.display, self.total, self.crops = display, total, crops
    self.stop, self.folder = stop, folder
    self.done, self.counted, self.began, self.shown = 0, 0, None, 0.0
    self.every = 0.5 if sys.stdout.isatty() else 10.0

  def add(self, count):
    """After count more examples."""
    self.done += count
    now = time.monotonic()
    if self.began is None:  # the first batch compiles
      self.began, self.shown = now, now
    else:
      self.counted += count
      if now - self.shown >= self.every or self.done == self.total:
        seconds = (now - self.began) / self.counted
        self.display.update(self.done, self.crops / max(seconds, 1e-9), seconds, {})
        self.shown = now
    if self.stop.number and self.done < self.total:
      raise Interrupted(
        f"codes: stopped by {signal.Signals(self.stop.number).name} after {self.done} of "
        f"{self.total} images; finished shards are kept in {self.folder}, and the same command "
        "goes on from there",
        self.stop.number,
      )
