"""The layers that the networks share: linear maps, norms, dropout, SwiGLU, rotary angles, patches.

Dimensions: B batch, N tokens, D width, H heads, K head width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

NORM_EPSILON = 1e-5
ZEROS = -1.0  # value of init_std for a matrix of zeros
POWER_ITERATIONS = 16


def precision(dtype):
  """Returns the precision to ask for in products of arrays of a compute dtype.

  "highest" for float32, which by default JAX multiplies in bfloat16 on TPUs and in TF32 on GPUs;
  None for others, whose products have one precision.
  """
  return "highest" if dtype == jnp.float32 else None


class Linear(nn.Module):
  """Maps x [..., in] to [..., features] by one matrix [in, features] and an optional bias.

  Leading axes are merged for the product: otherwise XLA's gradients on a CPU take twice as long.
  init_std 0 means variance 1 / in; ZEROS means a matrix of zeros.
  out_dtype is that of the result, by default dtype. A wider one keeps the digits of the product's
  sums, which are float32 in any case; gradients are computed in dtype.

  spectral_norm replaces W by W σ₀ / σ(W), where σ₀ is the spectral norm at initialisation, so that
  the spectral norm stays constant (improved spectral normalisation, ViTGAN, arXiv:2107.04589). σ₀
  is the parameter "initial_norm", which gets no gradient.
  """

  features: int
  use_bias: bool = False
  init_std: float = 0.0
  spectral_norm: bool = False
  dtype: Any = jnp.float32
  out_dtype: Any = None

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    if self.init_std:
      init = nn.initializers.normal(max(self.init_std, 0.0))
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    if self.spectral_norm:
      first = self.param("initial_norm", lambda _: spectral_norm(kernel))
      kernel = kernel * (jax.lax.stop_gradient(first) / spectral_norm(kernel))
    out_dtype = jnp.dtype(self.out_dtype or self.dtype)
    wide = self.features >= 2048 and self.features % 1024 == 0
    product = _own_product if wide or out_dtype != self.dtype else _product
    y = product(x.astype(self.dtype).reshape(-1, x.shape[-1]), kernel.astype(self.dtype), out_dtype)
    if self.use_bias:
      y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(out_dtype)
    return y.reshape(*x.shape[:-1], self.features)


def _product(x, kernel, out_dtype):
  """Returns x [T, in] @ kernel [in, out] in out_dtype."""
  return jnp.matmul(x, kernel, precision=precision(x.dtype), preferred_element_type=out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _own_product(x, kernel, out_dtype):
  """Returns _product with a gradient of its own, in the dtype of x; reverse mode only.

  With an out_dtype, JAX's would multiply float32 cotangents by bfloat16 numbers: in float32.
  With a wide kernel, XLA's runs at half speed on a CPU, as the rows of the cotangent lie a multiple
  of 1024 numbers apart. This one transposes x in memory before the product: 77 instead of
  41 GFLOP/s on 2 cores at 768 × 4096.
  """
  return _product(x, kernel, out_dtype)


def _forward(x, kernel, out_dtype):
  return _product(x, kernel, out_dtype), (x, kernel)


def _backward(_, saved, y):
  x, kernel = saved
  y = y.astype(x.dtype)
  # Decided when the program is lowered, which may be for another platform than this process's.
  of_kernel = jax.lax.platform_dependent(
    x,
    y,
    cpu=lambda x, y: _product(jax.lax.optimization_barrier(x.T), y, x.dtype),
    default=lambda x, y: _product(x.T, y, x.dtype),
  )
  return _product(y, kernel.T, x.dtype), of_kernel


_own_product.defvjp(_forward, _backward)


def spectral_norm(matrix):
  """Returns an estimate from below of the largest singular value of a matrix [in, out]; float32.

  Power iteration starts from a fixed vector, not from the last step's, so that the network depends
  on its weights alone. The gradient is that of uᵀ W v at the last u and v.
  """
  product = functools.partial(jnp.matmul, precision="highest")
  fixed = jax.lax.stop_gradient(matrix)
  v = np.random.default_rng(0).standard_normal(matrix.shape[1]).astype(np.float32)

  def iterate(v, _):
    v = product(fixed.T, product(fixed, v))
    return v / (jnp.linalg.norm(v) + 1e-12), None

  v, _ = jax.lax.scan(iterate, v / np.linalg.norm(v), length=POWER_ITERATIONS)
  u = product(fixed, v)
  return product(u / (jnp.linalg.norm(u) + 1e-12), product(matrix, v))


def norm(name, dtype):
  """Returns an RMSNorm module, computed in float32 (arXiv:1910.07467)."""
  return nn.RMSNorm(epsilon=NORM_EPSILON, dtype=dtype, name=name)


class Dropout(nn.Module):
  """Dropout of x [B, ...] with one mask per example; active when a "dropout" rng is given.

  example_index: int [B], the global index. nn.Dropout would draw one mask for the local batch, so
  that pmap and jit would differ.
  """

  rate: float

  @nn.compact
  def __call__(self, x, example_index):
    if self.rate == 0.0 or not self.has_rng("dropout"):
      return x
    key = self.make_rng("dropout")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - self.rate), 0.0)


class DropPath(nn.Module):
  """Drops the whole residual branch of an example (stochastic depth, arXiv:1603.09382).

  rate is the probability and may be traced, since each scanned layer has its own. example_index:
  int [B], the global index. Active when a "dropout" rng is given.
  """

  @nn.compact
  def __call__(self, x, rate, example_index):
    if not self.has_rng("dropout"):
      return x
    key = self.make_rng("dropout")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
    keep = jax.vmap(lambda k: jax.random.uniform(k) >= rate)(keys)
    keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


class SwiGLU(nn.Module):
  """Computes w2(silu(w1 x) · w3 x) of x [B, N, D]: the gated MLP of arXiv:2002.05202."""

  mlp_dim: int
  init_std: float = 0.0
  spectral_norm: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    linear = functools.partial(
      Linear, init_std=self.init_std, spectral_norm=self.spectral_norm, dtype=self.dtype
    )
    gate, value = jnp.split(linear(2 * self.mlp_dim, name="w13")(x), 2, axis=-1)
    return linear(x.shape[-1], name="w2")(nn.silu(gate) * value)


def grid_coords(height, width):
  """Returns row and column of each token of a grid in raster order; int32 [height·width, 2]."""
  return np.stack(np.divmod(np.arange(height * width), width), axis=-1).astype(np.int32)


def rope_table(coords, head_dim, base=1e4):
  """Returns cosines and sines of two-dimensional rotary positions (arXiv:2104.09864, 2406.06525).

  The first half of a head's pairs rotates with the row, the second half with the column.

  Args:
    coords: [N, 2], row and column of each token.
    head_dim: width of a head, a multiple of 4.
    base: base of the geometric series of frequencies.

  Returns:
    float32 [2, N, head_dim / 2]: cosines, then sines.

  Raises:
    ValueError: if head_dim is not a multiple of 4.
  """
  if head_dim % 4:
    raise ValueError(f"RoPE needs a head width divisible by 4, not {head_dim}")
  half = head_dim // 2
  rates = base ** (-np.arange(0, half, 2) / half)
  angles = np.asarray(coords)[:, :, None] * rates
  angles = angles.reshape(len(coords), half)
  return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def apply_rope(x, rope):
  """Rotates the interleaved pairs of x [B, N, H, K] by the angles of a rotary table.

  rope: [2, N, K / 2], or [2, B, N, K / 2] with a table per example.
  """
  cos, sin = rope[0][..., None, :], rope[1][..., None, :]
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
  return rotated.reshape(x.shape).astype(x.dtype)


def default_mlp_dim(width, multiple=32):
  """Returns SwiGLU's hidden width: 8/3 of width, rounded up to a multiple (arXiv:2002.05202)."""
  return -(-(8 * width // 3) // multiple) * multiple


def patchify(images, patch):
  """Cuts images [B, H, W, C] into patches [B, (H/p)(W/p), p·p·C] in raster order."""
  b, h, w, c = images.shape
  x = images.reshape(b, h // patch, patch, w // patch, patch, c)
  return x.swapaxes(2, 3).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches, patch, shape):
  """Joins patches [B, h·w, p·p·C] to images [B, h·p, w·p, C]; shape is (h, w)."""
  b, _, f = patches.shape
  h, w = shape
  x = patches.reshape(b, h, w, patch, patch, f // patch**2)
  return x.swapaxes(2, 3).reshape(b, h * patch, w * patch, -1)
