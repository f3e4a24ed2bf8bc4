"""benchmark sampling: the speed of drawing codes from the GPT of a config, with random weights.

  python -m imgtx_jax.benchmark sampling --config configs/quickstart.py --dial

  images_per_second      whole images of N codes, guided as config.sample says (twice the batch)
  seconds                of one batch of --batch images: the median of --steps runs
  ms_per_code            of the batch
  compile_seconds        of the whole sampling loop
  peak_memory_bytes      of the first accelerator; on a CPU, of the whole process
  weight_bytes           read once in each step: all matrices, no tables of embeddings
  bytes_per_second       the machine's rate of reading memory, measured in the same run
  floor_seconds          reading the weights once for each code at that rate
  fraction_of_floor      floor_seconds over seconds: 1 would be the floor

With --dial also images at each prefix k, drawn as `sample` draws them from a fine-tuned work
directory: min(k + 1, N) steps of the GPT and one pass of the generator. The prefixes take turns.

  dial                   for k = 0, N/16, N/4 and N: prefix, images_per_second, speedup over k = N
                         and compile_seconds
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax import rng
from imgtx_jax.benchmark import common
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.distributed import processes
from imgtx_jax.sampling import autoregressive
from imgtx_jax.sampling.sampler import Sampler, sampling_params
from imgtx_jax.stages import STAGES, build, builders
from imgtx_jax.stages.base import sampling

READ_BYTES = 2**29  # of the array whose reading is timed: far more than any cache holds


def measure(config, batch, runs, classes=0, dial=False):
  """Measures drawing `batch` images at a time; returns the object of the module's docstring."""
  validation.check(config)
  classes = common.number_of_classes(config, classes)
  result = measure_codes(config, classes, batch, runs)
  if dial:
    result["dial"] = measure_dial(config, classes, batch, runs)
  return result | {"cfg_scale": config.sample.cfg_scale} | common.machine(config)


def measure_codes(config, classes, batch, runs):
  """Measures the GPT alone: all N codes of `batch` images."""
  gpt = builders.make_gpt(config, classes)
  params = random_params(gpt, batch, configs.compute_dtype(config))
  total = configs.num_codes(config)
  options = sampling(config)

  def draw(params, batch):
    return autoregressive.sample_codes(
      gpt, params, batch["label"], batch["key"], steps=total, options=options
    )[0]

  inputs = {
    "label": jnp.arange(batch, dtype=jnp.int32) % classes,
    "key": rng.example_keys(jax.random.key(0), jnp.arange(batch)),
  }
  began = time.monotonic()
  program = jax.jit(draw).lower(params, inputs).compile()
  compiling = time.monotonic() - began
  median = common.median_seconds(lambda: program(params, inputs), runs)
  read = sum(
    x.nbytes
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if not str(path[-1]).endswith("'embedding']")
  )
  rate = read_rate()
  floor = total * read / rate
  return {
    "batch_size": batch,
    "codes": total,
    "images_per_second": batch / median,
    "seconds": median,
    "ms_per_code": 1e3 * median / total,
    "compile_seconds": compiling,
    "peak_memory_bytes": processes.peak_memory_bytes(),
    "weight_bytes": read,
    "bytes_per_second": rate,
    "floor_seconds": floor,
    "fraction_of_floor": floor / median,
  }


def measure_dial(config, classes, batch, runs):
  """Measures drawing images at several prefixes k; [{"prefix", "images_per_second", …}]."""
  results = common.random_results(config, (*STAGES["finetune"].sources, "finetune"), classes)
  stage = build("finetune", config, classes)
  total, options = stage.num_codes, sampling(config)
  prefixes = sorted({0, total // 16, total // 4, total})
  draw = [Sampler(stage, results, options, prefix=k, batch_size=batch).draw for k in prefixes]
  labels = np.arange(batch) % classes
  rounds = [
    [common.seconds_of(lambda run=run: run(labels)) for run in draw] for _ in range(runs + 1)
  ]
  median = [statistics.median(column[1:]) for column in zip(*rounds, strict=True)]
  return [
    {
      "prefix": k,
      "images_per_second": batch / seconds,
      "speedup": median[-1] / seconds,
      "compile_seconds": max(first - seconds, 0.0),
    }
    for k, seconds, first in zip(prefixes, median, rounds[0], strict=True)
  ]


def random_params(gpt, batch, dtype):
  """Returns random parameters of a GPT, as the sampler takes them."""
  shapes = jax.eval_shape(
    gpt.init,
    jax.random.key(0),
    jnp.zeros((batch, gpt.shape[0] * gpt.shape[1]), jnp.int32),
    jnp.zeros(batch, jnp.int32),
  )["params"]
  draw = np.random.default_rng(0)

  def fill(x):
    return 0.02 * draw.standard_normal(x.shape, np.float32)

  params = sampling_params({"gpt": jax.tree.map(fill, shapes)}, dtype)["gpt"]
  return jax.tree.map(jnp.asarray, params)


def read_rate():
  """Returns the bytes per second that one device reads: the median of reductions of an array."""
  x = jnp.ones(READ_BYTES // 4, jnp.float32)
  largest = jax.jit(jnp.max)
  return READ_BYTES / common.median_seconds(lambda: largest(x), 5)
