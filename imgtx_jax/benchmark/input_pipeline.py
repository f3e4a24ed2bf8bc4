"""benchmark input: the speed of the input, of each part alone and of the whole pipeline.

  python -m imgtx_jax.benchmark input --config configs/tiny_imagenet.py

Images are the first 256 of the training split of the config's data; without --config, 256 generated
photographs of 500x375 pixels (JPEG, quality 92), cropped at random to 256 pixels. All files are
read once before, so that they come from memory. Rates are images a second.

  source, decode, resize      one thread: reading the bytes, decoding, the crop and its resizing
  batch, transfer             stacking 64 crops, and handing such a batch to the devices
  megabytes_per_second        of encoded files, at the rate of source
  mean_bytes                  size of an encoded file

Lists have an entry for one core, and one for all cores if there are more:

  cores                       how many
  pipeline                    training's input, transfer included: batches of 64, in `threads`
  decode_floor                OpenCV's imdecode alone on the same bytes in memory, as many threads
  decode_crop_floor           the same with a crop at the same place, resized without antialiasing
  *_cpu_ms                    the same as CPU time an image, which other programs change less
  decode_floor_fraction       pipeline over decode_floor, the median of five rounds of both in turn
  decode_crop_floor_fraction  pipeline over decode_crop_floor, likewise
"""

import contextlib
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from imgtx_jax.config import defaults as configs
from imgtx_jax.data import pipeline, sources, transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError

IMAGES = 256
BATCH = 64
ROUNDS = 5


def measure(config, steps):
  """Measures the input in rounds of about `steps` batches; returns the object of the module's
  docstring. config: None for generated photographs."""
  with tempfile.TemporaryDirectory() as folder:
    if config is None:
      data = configs.default().data
      data.update(dict(image_size=256, crop="random"))
      write_photographs(folder, IMAGES)
      source = sources.open_files(folder)
    else:
      data = config.data
      source = sources.open_source(data.source, split="train", path=data.path, seed=config.seed)
    source = FirstImages(source, IMAGES)
    encoded = [source[i]["image"] for i in range(len(source))]
    if not isinstance(encoded[0], bytes):
      raise UserError(
        f'the data source "{data.source}" holds images in memory, none to read and decode: name '
        "another --config, or none"
      )
    devices = sharding.make_parallel("jit")
    size = float(np.mean([len(x) for x in encoded]))
    result = measure_parts(source, encoded, data, devices)
    result |= {"megabytes_per_second": result["source"] * size / 1e6, "mean_bytes": size}
    result |= measure_whole(source, encoded, data, devices, steps)
  return result | {
    "images": len(encoded),
    "image_size": data.image_size,
    "crop": data.crop,
    "min_scale": data.min_scale,
    "max_scale": data.max_scale,
    "threads": data.threads,
    "opencv": cv2.__version__,
  }


class FirstImages(sources.Source):
  """A source of the first `count` examples of another."""

  def __init__(self, source, count):
    super().__init__(source.class_names)
    self.source, self.count = source, min(count, len(source))
    self.reads = 0

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    self.reads += 1
    return self.source[index]

  def name(self, index):
    return self.source.name(index)


def write_photographs(folder, count):
  """Writes JPEGs of 500x375 pixels, about 90 kB each: noise, and equal contrast at every scale, as
  photographs have."""
  draw = np.random.default_rng(0)
  for index in range(count):
    image = draw.normal(0, 4, (375, 500, 3)).astype(np.float32) + 120
    for octave in range(1, 8):
      coarse = draw.normal(0, 6 * 2 ** (octave / 2), (375 >> octave, 500 >> octave, 3))
      image += cv2.resize(coarse.astype(np.float32), (500, 375), interpolation=cv2.INTER_CUBIC)
    _, data = cv2.imencode(".jpg", np.clip(image, 0, 255), [cv2.IMWRITE_JPEG_QUALITY, 92])
    Path(folder, f"{index:03}.jpg").write_bytes(data.tobytes())


def make_crop(data):
  """Returns image → crop as the config's data asks, with random numbers of its own."""
  if data.crop == "center":
    return lambda image: transforms.center_crop(image, data.image_size)
  draw = np.random.default_rng(0)
  scales = (data.min_scale, data.max_scale)
  return lambda image: transforms.random_resized_crop(image, data.image_size, draw, *scales)


def measure_parts(source, encoded, data, devices):
  """Returns {part of the input: images a second}, each in one thread."""
  crop = make_crop(data)
  images = [transforms.decode(x) for x in encoded]
  crops = [crop(x) for x in images]
  count = min(BATCH, len(crops))
  examples = [{"image": x, "label": np.int32(0)} for x in crops[:count]]
  batch = pipeline.stack(examples)
  return {
    "source": rate(source.__getitem__, range(len(source))),
    "decode": rate(transforms.decode, encoded),
    "resize": rate(crop, images),
    "batch": count * rate(pipeline.stack, [examples] * 8),
    "transfer": count * rate(lambda _: wait(devices.put_batch(batch)), range(8)),
  }


def wait(batch):
  """Returns once a batch is on the devices."""
  return batch["image"].block_until_ready()


def rate(function, inputs):
  """Returns calls per second of function over the inputs, after one call that does not count."""
  function(inputs[0])
  began = time.monotonic()
  for x in inputs:
    function(x)
  return len(inputs) / (time.monotonic() - began)


def measure_whole(source, encoded, data, devices, steps):
  """Returns rates of the pipeline and of the floors, on one core and on all: {name: [value]}."""
  every = sorted(os.sched_getaffinity(0))
  # As many threads as the pipeline has: where other programs run, they get as much of the cores.
  threads = max(len(every), data.threads)
  runs = {
    "pipeline": lambda: pipeline_rate(source, data, devices, steps),
    "decode_floor": lambda: floor_rate(encoded, data, threads, steps, decode_only=True),
    "decode_crop_floor": lambda: floor_rate(encoded, data, threads, steps, decode_only=False),
  }
  columns = []
  for cores in [every[-1:]] + ([every] if len(every) > 1 else []):
    with only(cores):
      rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
    columns.append({"cores": len(cores)} | summarize(rounds))
  return {name: [column[name] for column in columns] for name in columns[0]}


def summarize(rounds):
  """Returns medians over rounds of {name: (images a second, CPU seconds an image)}."""
  values = {}
  for name in rounds[0]:
    values[name] = statistics.median(x[name][0] for x in rounds)
    values[f"{name}_cpu_ms"] = 1e3 * statistics.median(x[name][1] for x in rounds)
  for name in ("decode_floor", "decode_crop_floor"):
    values[f"{name}_fraction"] = statistics.median(x["pipeline"][0] / x[name][0] for x in rounds)
  return values


@contextlib.contextmanager
def only(cores):
  """Keeps this thread, and those that it starts meanwhile, on the given cores."""
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def pipeline_rate(source, data, devices, steps):
  """Returns (images a second of training's input, CPU seconds for each image read)."""
  busy, reads = time.process_time(), source.reads
  batch = min(BATCH, len(source)) // devices.batch_divisor * devices.batch_divisor
  batches = pipeline.train_iterator(
    source,
    batch_size=batch,
    image_size=data.image_size,
    crop=data.crop,
    min_scale=data.min_scale,
    max_scale=data.max_scale,
    seed=0,
    threads=data.threads,
  )
  for _ in range(max(4, steps // 2)):  # what is read ahead fills up meanwhile
    wait(devices.put_batch(next(batches)))
  began = time.monotonic()
  for _ in range(steps):
    wait(devices.put_batch(next(batches)))
  seconds = time.monotonic() - began
  batches.close()
  return steps * batch / seconds, (time.process_time() - busy) / (source.reads - reads)


def floor_rate(encoded, data, threads, steps, decode_only):
  """Returns (images a second, CPU seconds an image) of OpenCV, which releases Python's lock."""
  buffers = [np.frombuffer(x, np.uint8) for x in encoded]
  numbers = iter(range(steps * BATCH))  # whichever thread is free takes the next

  def work(thread):
    draw = np.random.default_rng(thread)
    for i in numbers:
      image = cv2.imdecode(buffers[i % len(buffers)], cv2.IMREAD_COLOR_RGB)
      if not decode_only:
        _cut(image, data, draw)

  with ThreadPoolExecutor(threads) as pool:
    began, busy = time.monotonic(), time.process_time()
    list(pool.map(work, range(threads)))
    speed = steps * BATCH / (time.monotonic() - began)
    return speed, (time.process_time() - busy) / (steps * BATCH)


def _cut(image, data, draw):
  side = min(image.shape[:2])
  if data.crop == "random":
    side = round(side * draw.uniform(data.min_scale, data.max_scale) ** 0.5)
  cv2.resize(image[:side, :side], (data.image_size, data.image_size))
