"""The Transformer of all five networks: Encoder, GPT, Generator, Discriminator, StyleEncoder.

Dimensions: B batch, N tokens, M memory tokens, D width, H heads, K head width, L layers,
S modulation width.
"""

import dataclasses
import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.distributed import collectives
from imgtx_jax.models.attention import Attention
from imgtx_jax.models.layers import ZEROS, Dropout, DropPath, Linear, SwiGLU, norm

REMAT_POLICIES = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class Context:
  """Inputs that all layers share besides the tokens; None where absent.

  rope: rotary table of the tokens, [2, N, K/2] or [2, B, N, K/2]. memory: [B, M, D'].
  memory_rope: [2, M, K/2]. memory_length: int [B], the memory tokens that may be attended to, the
  first ones. token_mask: bool [B, N], False where a token must not be attended to. modulation:
  [B, S].
  example_index: int [B], the global index, which makes dropout independent of sharding.
  position: scalar, the first token's position in the caches (decoding only).
  shape: (h, w) of the tokens' grid, needed by window attention.
  """

  rope: Any = None
  memory: Any = None
  memory_rope: Any = None
  memory_length: Any = None
  token_mask: Any = None
  modulation: Any = None
  example_index: Any = None
  position: Any = None
  shape: Any = flax.struct.field(pytree_node=False, default=None)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """Hyperparameters of one layer, and of how a stack of them runs.

  This is the only list of them: a config key of the same name in a network's group
  (config/groups.network) sets the field; see stages/builders.block_config.
  """

  num_heads: int
  mlp_dim: int  # width of SwiGLU's hidden layer
  memory: bool = False  # cross-attention to a memory
  modulated: bool = False  # shift, scale and gate of both branches by context.modulation
  causal: bool = False
  qk_norm: bool = False  # RMSNorm of queries and keys
  layer_scale: float = 0.0  # initial scale of the residual branches; 0: none (arXiv:2103.17239)
  attention: str = "dot"  # or "l2"; see Attention
  window: int = 0  # see Attention
  spectral_norm: bool = False  # of the matrices; see Linear
  dropout: float = 0.0  # of both residual branches
  drop_path: float = 0.0  # of the deepest layer; the layer at depth d in [0, 1] has drop_path · d
  init_std: float = 0.0  # of the matrices; 0: variance 1 / inputs
  attention_kernel: str = "xla"  # see attention_kernels.attend
  remat: str = "none"  # a key of REMAT_POLICIES
  unroll: int = 1  # layers per loop iteration


class Block(nn.Module):
  """One pre-norm layer: self-attention, optional cross-attention, SwiGLU; optional modulation.

  Cross-attention (memory) and modulation (modulated) exist by hyperparameter, never by argument.
  They start as the identity (zero gate, zero modulation), so that adding them to a trained network
  leaves its output unchanged. Modulation is adaLN (arXiv:2212.09748).

  Call args:
    x: [B, N, D].
    context: Context.
    cache: Attention's cache, or None.
    depth: the layer's relative depth in [0, 1].

  Returns:
    x [B, N, D] and the new cache, or None.
  """

  config: BlockConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, cache=None, depth=1.0):
    config, width = self.config, x.shape[-1]
    matrices = dict(init_std=config.init_std, spectral_norm=config.spectral_norm, dtype=self.dtype)
    attend = functools.partial(
      Attention,
      config.num_heads,
      kind=config.attention,
      window=config.window,
      qk_norm=config.qk_norm,
      kernel=config.attention_kernel,
      **matrices,
    )
    modulation = [None] * 6
    if config.modulated:
      # [B, 6 D]: shift, scale and gate of the two branches, all zero at the start.
      table = Linear(6 * width, use_bias=True, init_std=ZEROS, dtype=self.dtype, name="modulation")(
        nn.silu(context.modulation)
      )
      modulation = jnp.split(table[:, None, :], 6, axis=-1)

    h = _modulate(norm("attention_norm", self.dtype)(x), modulation[0], modulation[1])
    h, cache = attend(causal=config.causal, name="attention")(h, context, cache)
    h = self._branch(h, modulation[2], "attention_scale", context)
    x = x + self._drop_path("attention_drop_path", h, depth, context)
    if config.memory:
      gate = self.param("cross_gate", nn.initializers.zeros, (width,))
      h = norm("cross_norm", self.dtype)(x)
      h, _ = attend(cross=True, name="cross_attention")(h, context)
      x = x + h * gate.astype(self.dtype)
    h = _modulate(norm("mlp_norm", self.dtype)(x), modulation[3], modulation[4])
    h = SwiGLU(config.mlp_dim, **matrices, name="mlp")(h)
    h = self._branch(h, modulation[5], "mlp_scale", context)
    x = x + self._drop_path("mlp_drop_path", h, depth, context)
    return x, cache

  def _branch(self, h, gate, name, context):
    """Applies the learned scale, the gate and dropout to a residual branch h [B, N, D]."""
    if self.config.layer_scale:
      init = nn.initializers.constant(self.config.layer_scale)
      h = h * self.param(name, init, (h.shape[-1],)).astype(self.dtype)
    if gate is not None:
      h = h * (1.0 + gate)
    return Dropout(self.config.dropout, name=f"{name}_dropout")(h, context.example_index)

  def _drop_path(self, name, h, depth, context):
    if not self.config.drop_path:
      return h
    return DropPath(name=name)(h, self.config.drop_path * depth, context.example_index)


def _modulate(x, shift, scale):
  return x if shift is None else x * (1.0 + scale) + shift


class Transformer(nn.Module):
  """A stack of equal Blocks on x [B, N, D].

  With scan=True the parameters of all layers are stacked under "layers" with the layer axis first,
  and compile time does not grow with depth.
  With scan=False, for decoding, layer i is "layers_i"; unstack_layers converts the parameters.

  Call args:
    x: [B, N, D].
    context: Context.
    caches: a list of caches, one per layer, from init_cache; needs scan=False.

  Returns:
    x [B, N, D] and the new caches, or None.

  Raises:
    ValueError: for caches with scan=True.
  """

  depth: int
  config: BlockConfig
  scan: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, caches=None):
    config = self.config
    depths = np.linspace(0.0, 1.0, self.depth) if self.depth > 1 else np.ones(1)
    if not self.scan:
      after = []
      for i in range(self.depth):
        cache = None if caches is None else caches[i]
        block = Block(config, dtype=self.dtype, name=f"layers_{i}")
        x, cache = block(x, context, cache, depths[i])
        after.append(cache)
      return x, (None if caches is None else after)
    if caches is not None:
      raise ValueError("caches need scan=False: scanned layers would copy them every step")
    body = _ScanBody
    if config.remat != "none":
      body = nn.remat(body, prevent_cse=False, policy=REMAT_POLICIES[config.remat])
    stack = nn.scan(
      body,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, 0),
      length=self.depth,
      unroll=min(config.unroll, self.depth),
    )
    depths = jnp.asarray(depths, jnp.float32)
    x, _ = stack(config, dtype=self.dtype, name="layers")(x, context, depths)
    return x, None


class _ScanBody(nn.Module):
  """Adapts Block to nn.scan: (carry, broadcast, per-layer input) → (carry, output)."""

  config: BlockConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, context, depth):
    x = collectives.split_rows(x)
    x, _ = Block(self.config, dtype=self.dtype, name="block")(x, context, depth=depth)
    return collectives.split_rows(x), None


def unstack_layers(params):
  """Converts the parameters of scanned Transformers: "layers" [L, …] → "layers_0", "layers_1", …

  It works at any depth of the tree. Call it once at load, outside the compiled decoding loop.
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


def init_cache(depth, length, batch, num_heads, head_dim, dtype=jnp.float32):
  """Returns empty caches for decoding: per layer {"k", "v"}, each
  [batch, num_heads, length, head_dim].

  A head's keys are contiguous: on a CPU any other order of the axes is copied in every step.
  """
  shape = (batch, num_heads, length, head_dim)
  return [{"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)} for _ in range(depth)]
