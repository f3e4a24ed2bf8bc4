"""Self-attention and cross-attention, by inner product or by distance.

Dimensions: B batch, N tokens, M memory tokens, D width, H heads, K head width.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgtx_jax.models import window_attention
from imgtx_jax.models.attention_kernels import attend
from imgtx_jax.models.layers import Linear, apply_rope, norm, precision

KINDS = ("dot", "l2")


class Attention(nn.Module):
  """Multi-head attention of x [B, N, D] on itself, or on context.memory [B, M, D'] if cross is set.

  kind "dot" has logits qᵀk / √K. kind "l2" has logits −‖q − k‖² / √K, and its self-attention
  shares one matrix between queries and keys: this makes it Lipschitz (arXiv:2006.04710; used in a
  discriminator by ViTGAN, arXiv:2107.04589).
  window > 0 restricts self-attention to neighbourhoods of the grid context.shape, see
  window_attention.py.
  kernel: see attention_kernels.attend. Decoding, attention by distance and windows have XLA's.

  Call args:
    x: [B, N, D].
    context: transformer.Context.
    cache: {"k", "v"}, each [B, H, M, K], for decoding; or None. Token n attends to the cached
      positions up to context.position + n.

  Returns:
    [B, N, D], and the cache with the new tokens, or None.
  """

  num_heads: int
  cross: bool = False
  kind: str = "dot"
  window: int = 0
  causal: bool = False
  qk_norm: bool = False
  init_std: float = 0.0
  spectral_norm: bool = False
  kernel: str = "xla"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, cache=None):
    width = x.shape[-1]
    split = (*x.shape[:2], self.num_heads, width // self.num_heads)
    linear = functools.partial(
      Linear, init_std=self.init_std, spectral_norm=self.spectral_norm, dtype=self.dtype
    )
    tied = self.kind == "l2" and not self.cross
    if self.cross:
      q = linear(width, name="q")(x)
      k, v = jnp.split(linear(2 * width, name="kv")(context.memory.astype(self.dtype)), 2, axis=-1)
      key_rope, mask, lengths = context.memory_rope, None, context.memory_length
      query_rope = context.rope if key_rope is not None else None
    else:
      if tied:
        q, v = jnp.split(linear(2 * width, name="qv")(x), 2, axis=-1)
        k = q
      else:
        q, k, v = jnp.split(linear(3 * width, name="qkv")(x), 3, axis=-1)
      query_rope = key_rope = context.rope
      mask, lengths = context.token_mask, None
    q = q.reshape(split)
    k, v = (t.reshape(*t.shape[:2], self.num_heads, split[-1]) for t in (k, v))
    if self.qk_norm:
      q = norm("q_norm", self.dtype)(q)
      k = q if tied else norm("k_norm", self.dtype)(k)
    if query_rope is not None:
      q, k = apply_rope(q, query_rope), apply_rope(k, key_rope)
    if cache is not None:
      cache = {
        name: jax.lax.dynamic_update_slice_in_dim(
          cache[name], new.swapaxes(1, 2).astype(cache[name].dtype), context.position, axis=2
        )
        for name, new in (("k", k), ("v", v))
      }
      out = _cached_attention(self.kind, q, cache, context.position)
    elif self.window and not self.cross and max(context.shape) > self.window:
      out = self._in_windows(q, k, v, context)
    else:
      mask = None if mask is None else mask[:, None, None, :]
      scale, bias = _scale_and_bias(self.kind, k.swapaxes(1, 2))
      masks = dict(causal=self.causal, lengths=lengths, mask=mask)
      out = attend(q, k, v, kernel=self.kernel, scale=scale, bias=bias, **masks)
      if self.is_mutable_collection("intermediates"):
        if lengths is not None:
          mask = jnp.arange(k.shape[1]) < lengths[:, None, None, None]
        self.sow("intermediates", "attention", _attention_weights(self.kind, q, k, mask))
    out = linear(width, name="out")(out.reshape(x.shape[:2] + (width,)))
    return out, cache

  def _in_windows(self, q, k, v, context):
    if self.causal or context.token_mask is not None or self.kind != "dot":
      raise ValueError(
        "attention in windows has no causal order, no token mask and kind 'dot' only"
      )
    shape, batch = context.shape, len(q)
    keys, values = (window_attention.neighbourhoods(t, shape, self.window) for t in (k, v))
    scale, _ = _scale_and_bias(self.kind, keys)
    out = attend(
      *(window_attention.split(q, shape, self.window), keys, values),
      kernel="xla",  # the others have no mask like this
      scale=scale,
      mask=window_attention.mask(shape, self.window, batch),
    )
    return window_attention.join(out, shape, self.window, batch)


def _scale_and_bias(kind, keys):
  """Returns (scale, bias [B, H, 1, M] or None) for keys [B, H, M, K].

  Attention weights are softmax(scale · qᵀk + bias). For "l2", −‖q − k‖² = 2 qᵀk − ‖k‖² − ‖q‖², and
  the softmax ignores ‖q‖². Raises ValueError for an unknown kind.
  """
  root = math.sqrt(keys.shape[-1])
  if kind == "dot":
    return 1.0 / root, None
  if kind != "l2":
    raise ValueError(f"unknown kind of attention {kind!r}: one of {', '.join(KINDS)}")
  norms = jnp.sum(jnp.square(keys.astype(jnp.float32)), axis=-1)
  return 2.0 / root, -norms[:, :, None] / root


def _scores(kind, q, keys):
  """Returns logits float32 [B, H, N, M] of q [B, N, H, K] and keys [B, H, M, K]."""
  scale, bias = _scale_and_bias(kind, keys)
  exact = dict(precision=precision(q.dtype), preferred_element_type=jnp.float32)
  scores = scale * jnp.einsum("bnhk,bhmk->bhnm", q, keys, **exact)
  return scores if bias is None else scores + bias


def _cached_attention(kind, q, cache, position):
  """Returns attention [B, N, H, K] of q [B, N, H, K]; token n sees entries 0 … position + n."""
  scores = _scores(kind, q, cache["k"])
  seen = jnp.arange(scores.shape[-1]) <= position + jnp.arange(q.shape[1])[:, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
  weights = weights.astype(q.dtype)
  return jnp.einsum("bhnm,bhmk->bnhk", weights, cache["v"], precision=precision(q.dtype))


def _attention_weights(kind, q, k, mask):
  """Returns the softmax weights [B, H, N, M] of non-causal attention, for saliency maps."""
  scores = _scores(kind, q, k.swapaxes(1, 2))
  if mask is not None:
    scores = jnp.where(mask, scores, -jnp.inf)
  return jax.nn.softmax(scores, axis=-1)
