"""Attention on the tokens themselves or on a memory, by inner product or by distance.

Dimensions: B batch, N tokens, M memory tokens, D width, H heads, K head width.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgtx_jax.models import window_attention
from imgtx_jax.models.layers import Linear, apply_rope, norm

KINDS = ("dot", "l2")


class Attention(nn.Module):
  """Multi-head attention of x [B, N, D] on itself, or on a memory [B, M, D'] when cross is set.

  kind "dot" weighs by qᵀk / √K. "l2" weighs by −‖q − k‖² / √K, and self-attention has one matrix
  for queries and keys: then its slope is bounded, which that of inner products is not
  (arXiv:2006.04710; in a discriminator ViTGAN, arXiv:2107.04589).
  Returns [B, N, D] and the cache after the tokens were added (None without one). A cache is
  {"k", "v"}: each [B, H, M, K]; token n sees the cached positions up to position + n.
  window > 0: self-attention within neighbourhoods of the grid context.shape, see windows.py.
  """

  heads: int
  cross: bool = False
  kind: str = "dot"
  window: int = 0
  causal: bool = False
  qk_norm: bool = False
  init_std: float = 0.0
  spectral_norm: bool = False
  implementation: str = "xla"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, cache=None):
    width = x.shape[-1]
    split = (*x.shape[:2], self.heads, width // self.heads)
    linear = functools.partial(
      Linear, init_std=self.init_std, spectral_norm=self.spectral_norm, dtype=self.dtype
    )
    tied = self.kind == "l2" and not self.cross
    if self.cross:
      q = linear(width, name="q")(x)
      k, v = jnp.split(linear(2 * width, name="kv")(context.memory.astype(self.dtype)), 2, axis=-1)
      key_rope, mask = context.memory_rope, context.memory_mask
      query_rope = context.rope if key_rope is not None else None
    else:
      if tied:
        q, v = jnp.split(linear(2 * width, name="qv")(x), 2, axis=-1)
        k = q
      else:
        q, k, v = jnp.split(linear(3 * width, name="qkv")(x), 3, axis=-1)
      query_rope = key_rope = context.rope
      mask = context.token_mask
    q = q.reshape(split)
    k, v = (t.reshape(*t.shape[:2], self.heads, split[-1]) for t in (k, v))
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
      scale, bias = _terms(self.kind, k.swapaxes(1, 2))
      out = jax.nn.dot_product_attention(
        *(q, k, v, bias),
        mask=mask,
        scale=scale,
        is_causal=self.causal,
        implementation=self.implementation,
      )
      if self.is_mutable_collection("intermediates"):
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
    out = jax.nn.dot_product_attention(
      *(window_attention.split(q, shape, self.window), keys, values),
      mask=window_attention.mask(shape, self.window, batch),
      implementation=self.implementation,
    )
    return window_attention.join(out, shape, self.window, batch)


def _terms(kind, keys):
  """(scale, bias [B, H, 1, M] or None): softmax(scale · qᵀk + bias) are the weights that keys
  [B, H, M, K] get. −‖q − k‖² = 2 qᵀk − ‖k‖² − ‖q‖², and the last is the same for all keys."""
  root = math.sqrt(keys.shape[-1])
  if kind == "dot":
    return 1.0 / root, None
  if kind != "l2":
    raise ValueError(f"unknown kind of attention {kind!r}: one of {', '.join(KINDS)}")
  norms = jnp.sum(jnp.square(keys.astype(jnp.float32)), axis=-1)
  return 2.0 / root, -norms[:, :, None] / root


def _scores(kind, q, keys):
  """float32 [B, H, N, M] of q [B, N, H, K] and keys [B, H, M, K], before the softmax."""
  scale, bias = _terms(kind, keys)
  scores = scale * jnp.einsum("bnhk,bhmk->bhnm", q, keys, preferred_element_type=jnp.float32)
  return scores if bias is None else scores + bias


def _cached_attention(kind, q, cache, position):
  """Attention of q [B, N, H, K] on the first position + n + 1 entries of a cache; [B, N, H, K]."""
  scores = _scores(kind, q, cache["k"])
  seen = jnp.arange(scores.shape[-1]) <= position + jnp.arange(q.shape[1])[:, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
  return jnp.einsum("bhnm,bhmk->bnhk", weights.astype(q.dtype), cache["v"])


def _attention_weights(kind, q, k, mask):
  """Softmax weights [B, H, N, M] of non-causal attention, for looking at."""
  scores = _scores(kind, q, k.swapaxes(1, 2))
  if mask is not None:
    scores = jnp.where(mask, scores, -jnp.inf)
  return jax.nn.softmax(scores, axis=-1)
