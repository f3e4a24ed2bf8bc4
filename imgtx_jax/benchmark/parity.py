"""benchmark parity: the accelerator's numbers against the CPU's, for a config of small networks.

  python -m imgtx_jax.benchmark parity --config configs/quickstart.py

The same --steps steps of every stage, from one state, on batches of random images: on the CPU in
float32, and on the first accelerator in float32 (products in full precision) and in bfloat16. Then
the GPT's logits and the codes that it samples, with random weights in bfloat16, by each attention
kernel. A stage or a kernel that cannot run here says why in the place of its figures.

  stages    {stage: {"float32", "bfloat16": {"loss": largest relative difference of the loss from
            the CPU's over the steps, "worst": the metric that differs most in the last step, and
            "difference", by how much}}}
  kernels   {kernel: {"logits": largest difference from the first kernel's, relative to the largest
            logit; "codes": fraction of sampled codes that are equal}}
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax import rng
from imgtx_jax.benchmark import common, training
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError, first_line
from imgtx_jax.sampling import autoregressive
from imgtx_jax.stages import build, builders
from imgtx_jax.stages.base import sampling

KERNELS = {"gpu": ("xla", "cudnn"), "tpu": ("xla", "pallas")}  # else XLA's alone
_IMAGES = 4  # drawn by each kernel


def measure(config, steps, classes=0):
  """Returns the object of the module's docstring. classes: see common.number_of_classes."""
  validation.check(config)
  classes = common.number_of_classes(config, classes)
  stages = {}
  for name in config.stages:
    with _reason(stages, name):
      stages[name] = compare_steps(config, name, steps, classes)
  kernels = compare_kernels(config, classes)
  return {"stages": stages, "kernels": kernels, "steps": steps} | common.machine()


@contextlib.contextmanager
def _reason(results, name):
  """Puts what cannot run here into results[name] as {"error": a line}."""
  try:
    yield
  except (UserError, ValueError, RuntimeError, NotImplementedError) as error:
    results[name] = {"error": first_line(error)}


# -- Steps -----------------------------------------------------------------------------------------


def compare_steps(config, name, steps, classes):
  """Returns {dtype: differences from the CPU} of the stage `name`."""
  results = common.random_sources(with_dtype(config, "float32"), name, classes)
  cpu = sharding.make_parallel("jit", devices=jax.devices("cpu")[:1])
  here = sharding.make_parallel("jit", devices=jax.devices()[:1])
  stage = build(name, with_dtype(config, "float32"), classes)
  state, _ = training.init_state(stage, cpu, common.batch_shape(config, stage), results)
  state = jax.tree.map(np.array, state)
  batches = training.random_batches(config, stage, classes, stage.inputs(results))
  expected = run_steps(stage, cpu, state, batches, steps)
  found = {}
  for dtype in ("float32", "bfloat16"):
    other = build(name, with_dtype(config, dtype), classes)
    found[dtype] = difference(run_steps(other, here, state, batches, steps), expected)
  return found


def with_dtype(config, dtype, **values):
  """Returns a copy of a config with another compute dtype, and other values of its keys."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.update(dtype=dtype, **values)
  return config


def run_steps(stage, devices, state, batches, steps):
  """Returns the metrics of every step: [{name: float}]."""
  run, key = devices.compile_step(stage.step), devices.put_key(jax.random.key(0))
  state, metrics = devices.put_state(state), []
  with jax.default_matmul_precision("highest"):  # of float32: of bfloat16 there is one
    for i in range(steps):
      state, last = run(state, devices.put_batch(batches[i % len(batches)]), key)
      metrics.append({name: float(x) for name, x in jax.device_get(last).items()})
  return metrics


def difference(found, expected):
  """Returns {"loss", "worst", "difference"} of two runs' metrics, see the module's docstring."""

  def relative(ours, theirs):
    return abs(ours - theirs) / max(abs(theirs), 1e-3)

  ours, theirs = found[-1], expected[-1]
  each = {name: relative(ours[name], theirs[name]) for name in theirs}
  worst = max(each, key=lambda name: np.nan_to_num(each[name], nan=np.inf))
  losses = [relative(_loss(a), _loss(b)) for a, b in zip(found, expected, strict=True)]
  return {"loss": max(losses), "worst": worst, "difference": each[worst]}


def _loss(metrics):
  """Returns the loss of a stage by its metrics; the adversarial ones have one a network."""
  return metrics["loss"] if "loss" in metrics else sum(v for k, v in metrics.items() if "loss" in k)


# -- Attention kernels -----------------------------------------------------------------------------


def compare_kernels(config, classes):
  """Returns {kernel: differences from the first} of the GPT, of this platform's kernels."""
  figures, first = {}, None
  for kernel in KERNELS.get(jax.default_backend(), ("xla",)):
    with _reason(figures, kernel):
      logits, codes = draw(with_dtype(config, "bfloat16", attention_kernel=kernel), classes)
      first = first or (logits, codes)
      figures[kernel] = {
        "logits": float(np.abs(logits - first[0]).max() / np.abs(first[0]).max()),
        "codes": float((codes == first[1]).mean()),
      }
  return figures


def draw(config, classes):
  """Returns the logits float32 [B, N, V] of random codes, and codes int [B, N] sampled by random
  weights."""
  gpt, total = builders.make_gpt(config, classes), configs.num_codes(config)
  labels = jnp.arange(_IMAGES) % classes
  keys = rng.example_keys(jax.random.key(0), jnp.arange(_IMAGES))
  known = np.random.default_rng(0).integers(0, gpt.codebook_size, (_IMAGES, total), np.int32)
  weights = random_weights(gpt, labels, known)

  @jax.jit
  def run(weights, known):
    logits, _ = gpt.apply({"params": weights}, known, labels)
    codes, _ = autoregressive.sample_codes(
      gpt, weights, labels, keys, steps=total, options=sampling(config)
    )
    return logits, codes

  return jax.device_get(run(weights, known))


def random_weights(gpt, labels, codes):
  """Returns normal weights for a GPT: its own first ones give equal logits to all codes."""
  shapes = jax.eval_shape(gpt.init, jax.random.key(0), codes, labels)["params"]
  draws = np.random.default_rng(0)
  return jax.tree.map(lambda x: 0.05 * draws.standard_normal(x.shape, np.float32), shapes)
