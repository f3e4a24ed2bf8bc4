"""Dot-product attention by a fused kernel where there is one, else by XLA.

A fused kernel holds no weights [B, H, N, M] in memory. Which one runs is decided when a program is
lowered, by the platform that it is lowered for, which need not be this process's: cuDNN's on CUDA,
JAX's Pallas kernel on TPUs. Their gradients are of first order only.

Dimensions: B batch, N tokens, M keys, H heads, K head width.
"""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp

from imgtx_jax.distributed import collectives
from imgtx_jax.models.layers import precision

KERNELS = ("auto", "xla", "cudnn", "pallas")
# Tokens and keys from which "auto" takes a fused kernel. cuDNN's saves launches and memory even on
# short sequences; on a TPU XLA's is fast as long as its weights are small (not measured).
CUDNN_TOKENS = 64
PALLAS_TOKENS = 1024
_HALVES = (jnp.bfloat16, jnp.float16)
_LANES = 128  # of a TPU: the Pallas kernel takes multiples of so many tokens
_BLOCKS = (512, 256, 128)  # tokens a block of it; the default, 128, leaves the TPU waiting
_ANY_CUDNN = 90800  # a version of cuDNN, 9.8, to trace for where none is installed


def attend(q, k, v, *, kernel, scale, causal=False, lengths=None, bias=None, mask=None):
  """Returns attention softmax(scale · q kᵀ + bias) v, [B, N, H, K]; the softmax is float32.

  Args:
    q: [B, N, H, K]. k, v: [B, M, H, K].
    kernel: "auto" takes a fused kernel where its conditions hold and it is worth it; "cudnn" or
      "pallas" that one where its conditions hold, on its own platform; "xla" none.
    scale: a float.
    causal: whether token n attends to keys 0 … n only.
    lengths: int [B]; keys from there on are not attended to. None: all are.
    bias: added to the logits, [B, H, 1, M]; mask: bool [B, 1, 1, M], False where a key must not be
      attended to. Fused kernels have neither.
  """
  options = dict(scale=scale, causal=causal)
  plain = functools.partial(_by_xla, **options, bias=bias, mask=mask)
  fused = {}
  if bias is None and mask is None and q.dtype in _HALVES:
    fewest, width = min(q.shape[1], k.shape[1]), q.shape[-1]
    if _wanted(kernel, "cudnn", fewest >= CUDNN_TOKENS) and cudnn_takes(width):
      fused["cuda"] = functools.partial(_by_cudnn, **options)
    if _wanted(kernel, "pallas", fewest >= PALLAS_TOKENS) and pallas_takes(width):
      fused["tpu"] = functools.partial(_by_pallas, **options)
  if not fused:
    return plain(q, k, v, lengths)
  # In a gradient, what the others would keep of the forward pass are zeros here, which XLA removes.
  return jax.lax.platform_dependent(q, k, v, lengths, **fused, default=plain)


def _wanted(kernel, name, worth_it):
  return kernel == name or (kernel == "auto" and worth_it)


def cudnn_takes(width):
  """Returns whether cuDNN has attention for heads of this width on all its GPUs."""
  return width % 8 == 0 and width <= 128


def pallas_takes(width):
  """Returns whether the Pallas kernel has attention for heads of this width."""
  return width % 8 == 0 and width <= _LANES


def _by_xla(q, k, v, lengths, *, scale, causal, bias=None, mask=None):
  with jax.default_matmul_precision(precision(q.dtype)):
    return jax.nn.dot_product_attention(
      *(q, k, v, bias),
      mask=mask,
      scale=scale,
      is_causal=causal,
      key_value_seq_lengths=lengths,
      implementation="xla",
    )


def _by_cudnn(q, k, v, lengths, *, scale, causal):
  tokens = q.shape[1]
  # JAX trains with even numbers of tokens only.
  q, k, v, lengths = _padded(q, k, v, lengths, causal, multiple=2)
  with _some_cudnn():
    out = jax.nn.dot_product_attention(
      *(q, k, v),
      scale=scale,
      is_causal=causal,
      key_value_seq_lengths=lengths,
      implementation="cudnn",
    )
  return out[:, :tokens]


def _some_cudnn():
  """Returns a context in which JAX traces cuDNN's attention although this process has no cuDNN: the
  program may be for another machine, and JAX asks for a version, which is of no consequence here.
  """
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  if cudnn.cuda_versions is not None:
    with contextlib.suppress(RuntimeError):  # the plugin without cuDNN, as "plan-gpu" installs it
      cudnn.cuda_versions.cudnn_get_version()
      return contextlib.nullcontext()
  return mock.patch.object(cudnn, "check_cudnn_version", lambda: _ANY_CUDNN)


def _by_pallas(q, k, v, lengths, *, scale, causal):
  run = functools.partial(_by_pallas_on_one, scale=scale, causal=causal)
  return collectives.by_rows(run, q, k, v, lengths)


def _by_pallas_on_one(q, k, v, lengths, *, scale, causal):
  # Half a second, for those alone who use it.
  from jax.experimental.pallas.ops.tpu import flash_attention as pallas

  tokens, segments = q.shape[1], None
  q, k, v, lengths = _padded(q, k, v, lengths, causal, multiple=_LANES)
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, H, N, K]
  if lengths is not None:
    hidden = jnp.arange(k.shape[2]) >= lengths[:, None]  # [B, M]
    segments = pallas.SegmentIds(
      q=jnp.zeros((len(q), q.shape[2]), jnp.int32), kv=hidden.astype(jnp.int32)
    )
  of_q, of_k = (next(b for b in _BLOCKS if x.shape[2] % b == 0) for x in (q, k))
  out = pallas.flash_attention(
    *(q, k, v),
    segment_ids=segments,
    causal=causal,
    sm_scale=scale,
    block_sizes=pallas.BlockSizes(
      block_b=1,
      block_q=of_q,
      block_k_major=of_k,
      block_k=of_k,
      block_q_major_dkv=of_q,
      block_q_dkv=of_q,
      block_k_major_dkv=of_k,
      block_k_dkv=of_k,
      block_q_dq=of_q,
      block_k_major_dq=of_k,
      block_k_dq=of_k,
    ),
  )
  return out.swapaxes(1, 2)[:, :tokens]


def _padded(q, k, v, lengths, causal, multiple):
  """Pads tokens and keys by zeros to multiples, and hides those keys: returns q, k, v, lengths."""
  keys = k.shape[1]
  q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0))) for x in (q, k, v))
  # Under a causal mask only tokens of the padding see keys of the padding.
  if lengths is None and k.shape[1] != keys and not causal:
    lengths = jnp.full(len(q), keys, jnp.int32)
  return q, k, v, lengths
