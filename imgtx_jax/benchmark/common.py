"""What the benchmarks and `plan` share: shapes of batches, random weights, timing."""

import contextlib
import statistics
import time

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from imgtx_jax.config import defaults as configs
from imgtx_jax.data import sources
from imgtx_jax.stages import STAGES, build


def number_of_classes(config, classes=0):
  """Returns `classes`, or the number of classes of the config's source where that is 0."""
  if classes:
    return classes
  return sources.open_source(config.data.source, split="train", path=config.data.path).num_classes


def batch_shape(config, stage):
  """Returns the shape (B, H, W, 3) of a stage's global batch of images."""
  return (stage.batch_size, config.data.image_size, config.data.image_size, 3)


def batch_shapes(config, stage, inputs):
  """Returns the shapes and types of a stage's global batch: {name: ShapeDtypeStruct}.

  inputs: the result of stage.inputs: None for images, or the CodeInputs of a cache of codes.
  """
  shape = batch_shape(config, stage)
  batch = {"label": jax.ShapeDtypeStruct(shape[:1], np.int32)}
  for name in stage.companion_names:
    batch[name] = jax.ShapeDtypeStruct(shape, np.uint8)
  if inputs is None:
    return batch | {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
  return batch | {"codes": jax.ShapeDtypeStruct((shape[0], inputs.num_codes), np.int32)}


def random_results(config, names, classes):
  """Returns {stage: results} of the stages `names`, in order, with random weights as NumPy arrays.

  These are what a work directory would hold after training them.
  """
  results = {}
  for name in names:
    stage = build(name, config, classes)
    shape = batch_shape(config, stage)

    @jax.jit
    def init(key, results, stage=stage, shape=shape):
      state = stage.init(key, shape, results)
      return {"params": state.params, "ema": state.ema, "variables": state.variables}

    results[name] = jax.device_get(init(jax.random.key(0), results))
  return results


def random_sources(config, name, classes):
  """Returns random_results of the stages that the stage `name` starts from."""
  return random_results(config, STAGES[name].sources, classes)


@contextlib.contextmanager
def without_compilation_cache():
  """Switches JAX's compilation cache off, so that every program is compiled and timed."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # else it remembers that it was on
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def seconds_of(function):
  """Returns the seconds from a call until its result is computed."""
  began = time.monotonic()
  jax.block_until_ready(function())
  return time.monotonic() - began


def median_seconds(function, runs):
  """Returns the median seconds of `runs` calls, after one more that does not count."""
  seconds = [seconds_of(function) for _ in range(runs + 1)]
  return statistics.median(seconds[1:])


def machine(config=None):
  """Returns {name: value} of what the measured numbers depend on: devices, dtype, versions."""
  dtype = {"dtype": configs.compute_dtype(config)} if config else {}
  return dtype | {
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }
