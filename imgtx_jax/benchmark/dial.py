"""benchmark dial: what an image costs at each setting k of the dial, with random weights.

Images are drawn as `sample` draws them from a fine-tuned work directory: min(k + 1, N) steps of the
GPT, guided as config.sample says, and one pass of the generator. The settings take turns.

prefixes             k of each row below: 0, N/16, N/4 and N
seconds_per_image    the median over --steps batches of --batch images
times_faster         than k = N
compile_seconds      of the first batch less a median one
"""

import statistics
import time

import jax
import numpy as np

from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.sampling.sampler import Sampler
from imgtx_jax.stages import build
from imgtx_jax.stages.base import sampling


def measure(config, classes, results, batch, runs):
  """The figures above; results: of tokenizer, pretrain and finetune."""
  validation.check(config)
  stage = build("finetune", config, classes)
  total = stage.num_codes
  prefixes = sorted({0, total // 16, total // 4, total})
  options = sampling(config)
  draw = [Sampler(stage, results, options, prefix=k, batch_size=batch).draw for k in prefixes]
  labels = np.arange(batch) % classes
  first = [_seconds(run, labels) for run in draw]
  rounds = [[_seconds(run, labels) for run in draw] for _ in range(runs)]
  median = [statistics.median(column) for column in zip(*rounds, strict=True)]
  return {
    "prefixes": prefixes,
    "seconds_per_image": [s / batch for s in median],
    "times_faster": [median[-1] / s for s in median],
    "compile_seconds": [max(a - b, 0.0) for a, b in zip(first, median, strict=True)],
    "batch_size": batch,
    "cfg_scale": config.sample.cfg_scale,
    "dtype": configs.compute_dtype(config),
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def _seconds(run, labels):
  began = time.monotonic()
  run(labels)  # returns NumPy arrays: it is done
  return time.monotonic() - began
