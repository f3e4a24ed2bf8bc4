"""The block that builds all five networks: Encoder, GPT, Generator, Discriminator, StyleEncoder.

Dimensions: B batch, N tokens, M memory tokens, D width, H heads, K head width, L layers,
S modulation width.
"""

import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.distributed import target
from imgtx_jax.models.attention import Attention
from imgtx_jax.models.layers import ZEROS, Dropout, DropPath, Linear, SwiGLU, norm

REMAT_POLICIES = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class Context:
  """What every layer of a Transformer reads beside its tokens; absent parts are None.

  rope: [2, N, K/2] of the tokens, or [2, B, N, K/2]; memory: [B, M, D']; memory_rope: [2, M, K/2];
  memory_mask: [B, M] bool, False where a memory token must not be seen;
  token_mask: [B, N] bool, the same for self-attention; modulation: [B, S];
  example_index: [B] global index of each example, which makes dropout independent of sharding;
  position: scalar, where the tokens start in the caches (decoding only);
  shape: (h, w) of the tokens' grid, which attention in windows needs.
  """

  rope: Any = None
  memory: Any = None
  memory_rope: Any = None
  memory_mask: Any = None
  token_mask: Any = None
  modulation: Any = None
  example_index: Any = None
  position: Any = None
  shape: Any = flax.struct.field(pytree_node=False, default=None)


class Block(nn.Module):
  """One pre-norm layer: self-attention, then cross-attention and modulation if asked, then SwiGLU.

  Cross-attention and modulation exist by hyperparameter, never by argument, and start as the
  identity (zero gate, zero modulation), so that a network which gains them computes what it did.
  layer_scale > 0 multiplies each residual branch by a learned vector of that initial value
  (arXiv:2103.17239). drop_path is the rate of the deepest layer: a layer at depth (0 … 1 of the
  stack) has drop_path · depth. attention is its kind, window its reach (see Attention);
  spectral_norm holds the matrices of attention and SwiGLU at their first one (see Linear).
  """

  heads: int
  hidden: int
  memory: bool = False
  modulated: bool = False
  causal: bool = False
  qk_norm: bool = False
  layer_scale: float = 0.0
  attention: str = "dot"
  window: int = 0
  spectral_norm: bool = False
  residual_dropout: float = 0.0
  ffn_dropout: float = 0.0
  drop_path: float = 0.0
  init_std: float = 0.0
  implementation: str = "xla"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, cache=None, depth=1.0):
    width = x.shape[-1]
    matrices = dict(init_std=self.init_std, spectral_norm=self.spectral_norm, dtype=self.dtype)
    attend = functools.partial(
      Attention,
      self.heads,
      kind=self.attention,
      window=self.window,
      qk_norm=self.qk_norm,
      implementation=self.implementation,
      **matrices,
    )
    modulation = [None] * 6
    if self.modulated:
      # [B, 6 D]: shift, scale and gate of the two branches, all zero at the start.
      table = Linear(6 * width, use_bias=True, init_std=ZEROS, dtype=self.dtype, name="modulation")(
        nn.silu(context.modulation)
      )
      modulation = jnp.split(table[:, None, :], 6, axis=-1)

    h = _modulate(norm("attention_norm", self.dtype)(x), modulation[0], modulation[1])
    h, cache = attend(causal=self.causal, name="attention")(h, context, cache)
    h = self._branch(h, modulation[2], "attention_scale", context, self.residual_dropout)
    x = x + self._drop_path("attention_drop_path", h, depth, context)
    if self.memory:
      gate = self.param("cross_gate", nn.initializers.zeros, (width,))
      h = norm("cross_norm", self.dtype)(x)
      h, _ = attend(cross=True, name="cross_attention")(h, context)
      x = x + h * gate.astype(self.dtype)
    h = _modulate(norm("mlp_norm", self.dtype)(x), modulation[3], modulation[4])
    h = SwiGLU(self.hidden, **matrices, name="mlp")(h)
    h = self._branch(h, modulation[5], "mlp_scale", context, self.ffn_dropout)
    x = x + self._drop_path("mlp_drop_path", h, depth, context)
    return x, cache

  def _branch(self, h, gate, name, context, dropout):
    """A residual branch after its learned scale, gate and dropout."""
    if self.layer_scale:
      init = nn.initializers.constant(self.layer_scale)
      h = h * self.param(name, init, (h.shape[-1],)).astype(self.dtype)
    if gate is not None:
      h = h * (1.0 + gate)
    return Dropout(dropout, name=f"{name}_dropout")(h, context.example_index)

  def _drop_path(self, name, h, depth, context):
    if not self.drop_path:
      return h
    return DropPath(name=name)(h, self.drop_path * depth, context.example_index)


def _modulate(x, shift, scale):
  return x if shift is None else x * (1.0 + scale) + shift


class Transformer(nn.Module):
  """A stack of equal blocks on x [B, N, D].

  Scanned, the parameters of all layers lie under "layers" with the layer first, and compile time
  does not grow with depth; unroll is how many layers one turn of the loop runs. Unrolled
  (scan=False; decoding), layer i lies under "layers_i"; unstack_layers turns the one tree into the
  other. Returns x and the caches, one a layer.
  """

  layers: int
  heads: int
  hidden: int
  memory: bool = False
  modulated: bool = False
  causal: bool = False
  qk_norm: bool = False
  layer_scale: float = 0.0
  attention: str = "dot"
  window: int = 0
  spectral_norm: bool = False
  residual_dropout: float = 0.0
  ffn_dropout: float = 0.0
  drop_path: float = 0.0
  init_std: float = 0.0
  implementation: str = "xla"
  remat: str = "none"
  unroll: int = 1
  scan: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, caches=None):
    make = functools.partial(
      Block,
      heads=self.heads,
      hidden=self.hidden,
      memory=self.memory,
      modulated=self.modulated,
      causal=self.causal,
      qk_norm=self.qk_norm,
      layer_scale=self.layer_scale,
      attention=self.attention,
      window=self.window,
      spectral_norm=self.spectral_norm,
      residual_dropout=self.residual_dropout,
      ffn_dropout=self.ffn_dropout,
      drop_path=self.drop_path,
      init_std=self.init_std,
      implementation=self.implementation,
      dtype=self.dtype,
    )
    depths = np.linspace(0.0, 1.0, self.layers) if self.layers > 1 else np.ones(1)
    if not self.scan:
      after = []
      for i in range(self.layers):
        cache = None if caches is None else caches[i]
        x, cache = make(name=f"layers_{i}")(x, context, cache, depths[i])
        after.append(cache)
      return x, (None if caches is None else after)
    if caches is not None:
      raise ValueError("caches need scan=False: scanned layers would copy them every step")
    block = _ScanBody
    if self.remat != "none":
      block = nn.remat(block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
    stack = nn.scan(
      block,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, 0),
      length=self.layers,
      unroll=min(self.unroll, self.layers),
    )
    x, _ = stack(make.keywords, name="layers")(x, context, jnp.asarray(depths, jnp.float32))
    return x, None


class _ScanBody(nn.Module):
  """A block as nn.scan wants it: (carry, broadcast, the layer's own) → (carry, output)."""

  hyperparameters: Any

  @nn.compact
  def __call__(self, x, context, depth):
    x, _ = Block(**self.hyperparameters, name="block")(target.rows(x), context, depth=depth)
    return target.rows(x), None


def unstack_layers(params):
  """The parameters of a scanned tree as an unrolled one: "layers" [L, …] → "layers_0", …

  Works at any depth of the tree. Done once at load, outside the compiled decoding loop.
  """
  if not isinstance(params, dict):
    return params
  tree = {}
  for name, value in params.items():
    if name == "layers":
      block = value["block"]
      for i in range(jax.tree.leaves(block)[0].shape[0]):
        tree[f"layers_{i}"] = jax.tree.map(lambda a, i=i: a[i], block)
    else:
      tree[name] = unstack_layers(value)
  return tree


def init_cache(layers, length, batch, heads, head_dim, dtype=jnp.float32):
  """Empty caches for decoding: a list of {"k", "v"} [batch, heads, length, head_dim].

  A head's keys lie together: any other order of the axes is copied in every step on a CPU.
  """
  shape = (batch, heads, length, head_dim)
  return [{"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)} for _ in range(layers)]
