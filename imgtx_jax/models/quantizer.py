"""Vector quantisation: latents to codes and back.

Pure functions of a small parameter dict, with one interface for both kinds:

  init(key) → params;  init_usage() → usage [V];  quantize(params, latents, …) → Quantized;
  continuous(latents) → vectors [B, N, C];  dequantize(params, codes) → vectors [..., C];
  revive(…) → params, usage, number revived.

Statistics over the batch are reduced over `axis` inside, so that pmap and jit agree.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.distributed import sharding


@flax.struct.dataclass
class Quantized:
  """vectors [B, N, C] with straight-through gradients; codes int32 [B, N]; scalar losses by name;
  counts [V]: how often each code was chosen in the global batch, as a share."""

  vectors: Any
  codes: Any
  losses: Any
  counts: Any


def normalize(x):
  """x over its L2 norm along the last axis, with a finite gradient at zero."""
  return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def _shares(codes, size, axis):
  """The share of each code in the global batch; float32 [V]."""
  counts = jnp.zeros(size).at[codes.reshape(-1)].add(1.0)
  return sharding.pmean(counts / codes.size, axis)


@dataclasses.dataclass(frozen=True)
class VectorQuantizer:
  """Nearest neighbours on the unit sphere (arXiv:1711.00937, L2-normalised as arXiv:2110.04627).

  commitment: weight of the encoder's pull towards its code. entropy: weight of the term which
  makes single assignments sure and their mean uniform (arXiv:2310.05737), 0 to leave it out.
  A code whose running share falls under revive_below / V is dead, and takes the place of a latent
  of the batch. Usage starts at zero: the first step draws the whole codebook from data.
  """

  codebook_size: int
  code_dim: int
  commitment: float = 0.25
  entropy: float = 0.0
  entropy_temperature: float = 0.01
  usage_decay: float = 0.99
  revive_below: float = 0.05
  perturb_neighbors: int = 4

  def init(self, key):
    """{"codebook": [V, C]}, rows on the unit sphere."""
    shape = (self.codebook_size, self.code_dim)
    return {"codebook": normalize(jax.random.normal(key, shape))}

  def init_usage(self):
    """Running shares [V]."""
    return jnp.zeros(self.codebook_size)

  def quantize(self, params, latents, *, axis=None, perturb=0.0, keys=None):
    """Latents [B, N, C] → Quantized.

    A share `perturb` of the codes is replaced by one of their nearest neighbours in the codebook
    (latent perturbation, arXiv:2509.12474), drawn with one key per example; it needs keys [B].
    """
    z = normalize(latents)
    codebook = normalize(params["codebook"])
    similarity = jnp.einsum("bnc,vc->bnv", z, codebook)
    codes = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
    counts = _shares(codes, self.codebook_size, axis)
    chosen = codes
    if keys is not None:
      chosen = self._perturbed(codes, similarity, perturb, keys)
    # The losses pull latents and codes together for the code that is nearest, perturbed or not.
    nearest = codebook[codes]
    losses = {
      "codebook": jnp.mean((nearest - jax.lax.stop_gradient(z)) ** 2),
      "commitment": self.commitment * jnp.mean((jax.lax.stop_gradient(nearest) - z) ** 2),
    }
    if self.entropy:
      losses["entropy"] = self.entropy * self._entropy(similarity, axis)
    vectors = z + jax.lax.stop_gradient(codebook[chosen] - z)
    return Quantized(vectors=vectors, codes=codes, losses=losses, counts=counts)

  def continuous(self, latents):
    """Latents [B, N, C] as vectors like those of codes, without quantisation; [B, N, C]."""
    return normalize(latents)

  def _perturbed(self, codes, similarity, share, keys):
    _, neighbors = jax.lax.top_k(jax.lax.stop_gradient(similarity), self.perturb_neighbors + 1)

    def one(key, codes, neighbors):
      which, pick = jax.random.split(key)
      replace = jax.random.uniform(which, codes.shape) < share
      rank = jax.random.randint(pick, codes.shape, 1, self.perturb_neighbors + 1)
      other = jnp.take_along_axis(neighbors, rank[:, None], axis=-1)[:, 0]
      return jnp.where(replace, other, codes)

    return jax.vmap(one)(keys, codes, neighbors)

  def _entropy(self, similarity, axis):
    """E[H(code | latent)] − H(mean): low when choices are sure and all codes are used."""
    log_p = jax.nn.log_softmax(similarity / self.entropy_temperature, axis=-1)
    p = jnp.exp(log_p)
    sample = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    mean = sharding.pmean(jnp.mean(p, axis=(0, 1)), axis)
    return sample + jnp.sum(mean * jnp.log(mean + 1e-9))

  def dequantize(self, params, codes):
    """Codes [...] → unit vectors [..., C]."""
    return normalize(params["codebook"])[codes]

  def revive(self, params, usage, counts, latents, key, *, axis=None):
    """Replaces dead codes by latents of the global batch; returns params, usage and how many."""
    first = jnp.all(usage == 0.0)  # no code has come from data yet, however often it was chosen
    usage = self.usage_decay * usage + (1.0 - self.usage_decay) * counts
    dead = first | (usage < self.revive_below / self.codebook_size)
    pool = sharding.all_gather(normalize(latents).reshape(-1, self.code_dim), axis)
    picks = jax.random.randint(key, (self.codebook_size,), 0, pool.shape[0])
    codebook = jnp.where(dead[:, None], pool[picks], params["codebook"])
    usage = jnp.where(dead, 1.0 / self.codebook_size, usage)
    return {"codebook": codebook}, usage, jnp.sum(dead)


@dataclasses.dataclass(frozen=True)
class FiniteScalarQuantizer:
  """FSQ (arXiv:2309.15505): each of C channels is rounded to one of levels[c] values in [-1, 1].

  No parameters and no losses; nothing to revive. V is the product of the levels.
  """

  levels: tuple[int, ...]
  usage_decay: float = 0.99

  @property
  def codebook_size(self):
    """V."""
    return int(np.prod(self.levels))

  @property
  def code_dim(self):
    """C."""
    return len(self.levels)

  @property
  def _basis(self):
    return np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)

  def init(self, key):
    """No parameters."""
    del key
    return {}

  def init_usage(self):
    """Running shares [V]."""
    return jnp.zeros(self.codebook_size)

  def quantize(self, params, latents, *, axis=None, perturb=0.0, keys=None):
    """Latents [B, N, C] → Quantized; perturbation moves single channels by one level."""
    levels = np.asarray(self.levels)
    bounded = self._bounded(latents)
    index = jnp.clip(jnp.round(bounded) + (levels // 2), 0, levels - 1).astype(jnp.int32)
    chosen = index
    if keys is not None:
      chosen = self._perturbed(index, perturb, keys, levels)
    exact = self._values(chosen)
    soft = self.continuous(latents)
    codes = jnp.sum(index * self._basis, axis=-1).astype(jnp.int32)
    return Quantized(
      vectors=soft + jax.lax.stop_gradient(exact - soft),
      codes=codes,
      losses={},
      counts=_shares(codes, self.codebook_size, axis),
    )

  def continuous(self, latents):
    """Latents [B, N, C] as vectors like those of codes, without quantisation; [B, N, C]."""
    levels = np.asarray(self.levels)
    return (self._bounded(latents) + levels // 2) / ((levels - 1) / 2) - 1.0

  def _bounded(self, latents):
    levels = np.asarray(self.levels)
    half = (levels - 1) / 2
    # tanh bounds the channels; even level counts are shifted so that rounding meets them all.
    shift = np.where(levels % 2 == 0, 0.5, 0.0)
    return jnp.tanh(latents + np.arctanh(shift / half * 0.999)) * half * 1.001 - shift

  def _perturbed(self, index, share, keys, levels):
    def one(key, index):
      which, pick = jax.random.split(key)
      replace = jax.random.uniform(which, index.shape) < share
      step = jnp.where(jax.random.bernoulli(pick, 0.5, index.shape), 1, -1)
      return jnp.where(replace, jnp.clip(index + step, 0, levels - 1), index)

    return jax.vmap(one)(keys, index)

  def _values(self, index):
    return index / ((np.asarray(self.levels) - 1) / 2) - 1.0

  def dequantize(self, params, codes):
    """Codes [...] → vectors [..., C] in [-1, 1]."""
    index = (codes[..., None] // self._basis) % np.asarray(self.levels)
    return self._values(index)

  def revive(self, params, usage, counts, latents, key, *, axis=None):
    """Keeps the running usage only."""
    usage = self.usage_decay * usage + (1.0 - self.usage_decay) * counts
    return params, usage, jnp.zeros((), jnp.int32)
