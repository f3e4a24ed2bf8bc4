"""benchmark sample: the speed of drawing codes from the GPT of a config, with random weights.

images_per_second      whole images of N codes, guided as config.sample says (twice the batch)
seconds                of one batch: the median of --steps runs
ms_per_code            of the batch
compile_seconds        of the whole sampling loop
peak_memory_bytes      of the first accelerator; on a CPU, of the whole process
weight_bytes           of what each step reads once: all matrices, no tables of embeddings
bytes_per_second       the machine's rate of reading memory, measured in the same run
floor_seconds          reading the weights once for each code at that rate
floor_share            floor_seconds over seconds: 1 would be the floor
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax import rng
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.models.transformer import unstack_layers
from imgtx_jax.sampling import autoregressive
from imgtx_jax.stages import builders
from imgtx_jax.stages.base import decoding
from imgtx_jax.training.memory import peak_memory_bytes

READ_BYTES = 2**29  # of the array that the measured rate is of: far more than any cache holds


def measure(config, classes, batch, runs):
  """The figures above, for `batch` images at a time."""
  validation.check(config)
  gpt = builders.make_gpt(config, classes)
  params = random_params(gpt, batch, configs.compute_dtype(config))
  total = configs.num_codes(config)
  options = decoding(config)

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
  seconds = []
  for _ in range(runs + 1):  # the first touches memory for the first time
    began = time.monotonic()
    jax.block_until_ready(program(params, inputs))
    seconds.append(time.monotonic() - began)
  median = statistics.median(seconds[1:])
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
    "peak_memory_bytes": peak_memory_bytes(),
    "weight_bytes": read,
    "bytes_per_second": rate,
    "floor_seconds": floor,
    "floor_share": floor / median,
    "cfg_scale": options.cfg_scale,
    "dtype": configs.compute_dtype(config),
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def random_params(gpt, batch, dtype):
  """Parameters of a GPT with normal entries, unstacked, matrices in the compute dtype."""
  shapes = jax.eval_shape(
    gpt.init,
    jax.random.key(0),
    jnp.zeros((batch, gpt.shape[0] * gpt.shape[1]), jnp.int32),
    jnp.zeros(batch, jnp.int32),
  )["params"]
  draw = np.random.default_rng(0)

  def fill(x):
    return jnp.asarray(0.02 * draw.standard_normal(x.shape, np.float32)).astype(dtype)

  return unstack_layers(jax.tree.map(fill, shapes))


def read_rate():
  """Bytes a second at which one device reads its memory: the median of sums over a large array."""
  x = jnp.ones(READ_BYTES // 4, jnp.float32)
  total = jax.jit(jnp.max)
  seconds = []
  for _ in range(6):
    began = time.monotonic()
    jax.block_until_ready(total(x))
    seconds.append(time.monotonic() - began)
  return READ_BYTES / statistics.median(seconds[1:])
