"""Fused kernels of attention: which one a program gets, and that it computes what XLA's does."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from imgtx_jax.distributed import sharding
from imgtx_jax.models import attention_kernels

B, H, K = 4, 2, 16
CALLS = {"cudnn": "__cudnn$fmha", "pallas": "tpu_custom_call"}


@pytest.mark.parametrize(
  ("tokens", "keys", "causal", "lengths"),
  [(130, 130, True, None), (24, 140, False, [1, 100])],
)
def test_the_kernel_of_tpus_computes_what_xla_does(tokens, keys, causal, lengths):
  draw = np.random.default_rng(0)
  sizes = [(2, n, H, K) for n in (tokens, keys, keys, tokens)]
  *arguments, cotangent = (draw.standard_normal(size, np.float32) for size in sizes)
  options = dict(scale=0.3, causal=causal)
  lengths = lengths and np.array(lengths, np.int32)

  def run(attend):
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, lengths, **options), *arguments)
    return out, *pull(cotangent)

  expected = jax.jit(lambda: run(attention_kernels._by_xla))()
  with pltpu.force_tpu_interpret_mode():
    found = jax.jit(lambda: run(attention_kernels._by_pallas))()
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def lowered_text(platform, run, tokens=128, keys=128, dtype=jnp.bfloat16, width=K, batch=B):
  q, k, v = (jax.ShapeDtypeStruct((batch, n, H, width), dtype) for n in (tokens, keys, keys))
  return run.trace(q, k, v).lower(lowering_platforms=(platform,)).as_text()


def kernels(platform, shapes, options):
  """The names of the fused kernels in the attention of a platform."""
  attend = functools.partial(attention_kernels.attend, scale=0.3, **options)
  text = lowered_text(platform, jax.jit(attend), **shapes)
  return [name for name, call in CALLS.items() if call in text]


@pytest.mark.parametrize(
  ("kernel", "shapes", "options", "on_cuda", "on_tpus"),
  [
    ("auto", {}, {}, ["cudnn"], []),
    ("auto", dict(tokens=1024, keys=1024), dict(causal=True), ["cudnn"], ["pallas"]),
    ("auto", dict(keys=8), {}, [], []),
    ("cudnn", dict(keys=8), {}, ["cudnn"], []),
    ("pallas", {}, {}, [], ["pallas"]),
    ("xla", {}, {}, [], []),
    ("cudnn", dict(width=20), {}, [], []),
    ("cudnn", dict(dtype=jnp.float32), {}, [], []),
    ("cudnn", {}, dict(mask=np.ones((B, 1, 1, 128), bool)), [], []),
  ],
)
def test_the_platform_that_is_lowered_for_chooses(kernel, shapes, options, on_cuda, on_tpus):
  options = dict(kernel=kernel) | options
  assert kernels("cuda", shapes, options) == on_cuda
  assert kernels("tpu", shapes, options) == on_tpus
  assert kernels("cpu", shapes, options) == []


def test_each_device_of_a_mesh_runs_the_kernel_on_its_rows():
  """XLA refuses to split it; a batch that does not divide is computed by every device."""
  devices = sharding.make_parallel("jit", fsdp=2, devices=jax.devices()[:4])
  attend = devices._on_mesh(functools.partial(attention_kernels.attend, scale=0.3, kernel="pallas"))
  for batch in (4, 3):
    run = jax.jit(attend, in_shardings=(devices._replicated,) * 3)
    text = lowered_text("tpu", run, batch=batch)
    assert CALLS["pallas"] in text and f"tensor<{1 if batch == 4 else 3}x{H}x128x{K}xbf16>" in text


def test_a_plugin_without_cudnn_is_none(monkeypatch):
  """As the extra plan-gpu installs it: what is traced is for another machine."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  def absent():
    raise RuntimeError("cuDNN not found.")

  monkeypatch.setattr(cudnn, "cuda_versions", types.SimpleNamespace(cudnn_get_version=absent))
  with attention_kernels._some_cudnn():
    assert cudnn.check_cudnn_version() >= 90000
