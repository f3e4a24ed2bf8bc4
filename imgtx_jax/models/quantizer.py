"""Vector quantisation: maps latents to codes and back.

Both kinds have the same interface, pure functions of a small parameter dict:

  init(key) → params;  init_usage() → usage [V];  quantize(params, latents, …) → Quantized;
  continuous(latents) → vectors [B, N, C];  dequantize(params, codes) → vectors [..., C];
  revive(…) → params, usage, number of codes revived.

Batch statistics are averaged over the mapped axis `axis` inside, so that pmap and jit agree.
Dimensions: B batch, N codes of an image, C channels of a code, V codebook size.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.distributed import collectives


@flax.struct.dataclass
class Quantized:
  """The result of quantisation.

  vectors: [B, N, C] with straight-through gradients. codes: int32 [B, N]. losses: weighted scalars
  by name. frequencies: [V], the fraction of the global batch's positions with each code.
  """

  vectors: Any
  codes: Any
  losses: Any
  frequencies: Any


def normalize(x):
  """Divides x by its L2 norm along the last axis, with a finite gradient at zero."""
  return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def _code_frequencies(codes, size, axis):
  """Returns the fraction of each code in the global batch; float32 [V]."""
  counts = jnp.zeros(size).at[codes.reshape(-1)].add(1.0)
  return collectives.pmean(counts / codes.size, axis)


@dataclasses.dataclass(frozen=True)
class VectorQuantizer:
  """Nearest neighbours on the unit sphere (arXiv:1711.00937, L2-normalised as arXiv:2110.04627).

  commitment: weight of the commitment loss. entropy: weight of the entropy loss, which makes
  assignments confident and code usage uniform (arXiv:2310.05737); 0 turns it off.
  A code whose running frequency is below revive_below / V is dead and is replaced by a latent of
  the batch. Usage starts at zero, so that the first step draws the whole codebook from data.
  perturb_neighbors: nearest codes among which a perturbed code is drawn.
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
    """Returns {"codebook": [V, C]} with rows on the unit sphere."""
    shape = (self.codebook_size, self.code_dim)
    return {"codebook": normalize(jax.random.normal(key, shape))}

  def init_usage(self):
    """Returns the initial running frequencies [V], all zero."""
    return jnp.zeros(self.codebook_size)

  def quantize(self, params, latents, *, axis=None, perturb=0.0, keys=None):
    """Quantises latents.

    Args:
      params: {"codebook": [V, C]}.
      latents: [B, N, C].
      axis: name of the mapped axis under pmap, else None.
      perturb: probability that a vector is replaced by one of its code's nearest neighbours in the
        codebook (latent perturbation, arXiv:2509.12474); needs keys.
      keys: random keys [B], one per example.

    Returns:
      Quantized. Its codes and losses are those before perturbation.
    """
    z = normalize(latents)
    codebook = normalize(params["codebook"])
    similarity = jnp.einsum("bnc,vc->bnv", z, codebook)
    codes = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
    frequencies = _code_frequencies(codes, self.codebook_size, axis)
    chosen = codes
    if keys is not None:
      chosen = self._perturbed(codes, similarity, perturb, keys)
    # The losses concern the nearest code, perturbed or not.
    nearest = codebook[codes]
    losses = {
      "codebook": jnp.mean((nearest - jax.lax.stop_gradient(z)) ** 2),
      "commitment": self.commitment * jnp.mean((jax.lax.stop_gradient(nearest) - z) ** 2),
    }
    if self.entropy:
      losses["entropy"] = self.entropy * self._entropy(similarity, axis)
    vectors = z + jax.lax.stop_gradient(codebook[chosen] - z)
    return Quantized(vectors=vectors, codes=codes, losses=losses, frequencies=frequencies)

  def continuous(self, latents):
    """Maps latents [B, N, C] to the range of code vectors without quantisation; [B, N, C]."""
    return normalize(latents)

  def _perturbed(self, codes, similarity, probability, keys):
    """Replaces codes [B, N] by near codes with a probability; similarity is [B, N, V]."""
    _, neighbors = jax.lax.top_k(jax.lax.stop_gradient(similarity), self.perturb_neighbors + 1)

    def one(key, codes, neighbors):
      which, pick = jax.random.split(key)
      replace = jax.random.uniform(which, codes.shape) < probability
      rank = jax.random.randint(pick, codes.shape, 1, self.perturb_neighbors + 1)
      other = jnp.take_along_axis(neighbors, rank[:, None], axis=-1)[:, 0]
      return jnp.where(replace, other, codes)

    return jax.vmap(one)(keys, codes, neighbors)

  def _entropy(self, similarity, axis):
    """Returns E[H(code | latent)] − H(mean): low if choices are confident and all codes used."""
    log_p = jax.nn.log_softmax(similarity / self.entropy_temperature, axis=-1)
    p = jnp.exp(log_p)
    sample = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    mean = collectives.pmean(jnp.mean(p, axis=(0, 1)), axis)
    return sample + jnp.sum(mean * jnp.log(mean + 1e-9))

  def dequantize(self, params, codes):
    """Maps codes int [...] to unit vectors [..., C]."""
    return normalize(params["codebook"])[codes]

  def revive(self, params, usage, frequencies, latents, key, *, axis=None):
    """Updates the running usage and replaces dead codes by latents of the global batch.

    Args:
      params: {"codebook": [V, C]}.
      usage: [V], the running frequencies.
      frequencies: [V], Quantized's.
      latents: [B, N, C].
      key: random key.
      axis: name of the mapped axis under pmap, else None.

    Returns:
      New params, new usage, and the number of codes replaced.
    """
    first = jnp.all(usage == 0.0)  # the first step replaces all codes
    usage = self.usage_decay * usage + (1.0 - self.usage_decay) * frequencies
    dead = first | (usage < self.revive_below / self.codebook_size)
    pool = collectives.all_gather(normalize(latents).reshape(-1, self.code_dim), axis)
    picks = jax.random.randint(key, (self.codebook_size,), 0, pool.shape[0])
    codebook = jnp.where(dead[:, None], pool[picks], params["codebook"])
    usage = jnp.where(dead, 1.0 / self.codebook_size, usage)
    return {"codebook": codebook}, usage, jnp.sum(dead)


@dataclasses.dataclass(frozen=True)
class FiniteScalarQuantizer:
  """FSQ (arXiv:2309.15505): rounds channel c to one of levels[c] values in [-1, 1].

  It has no parameters, no losses and no dead codes. V is the product of the levels.
  """

  levels: tuple[int, ...]
  usage_decay: float = 0.99

  @property
  def codebook_size(self):
    """Returns V."""
    return int(np.prod(self.levels))

  @property
  def code_dim(self):
    """Returns C."""
    return len(self.levels)

  @property
  def _basis(self):
    return np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)

  def init(self, key):
    """Returns {}: FSQ has no parameters."""
    del key
    return {}

  def init_usage(self):
    """Returns the initial running frequencies [V], all zero."""
    return jnp.zeros(self.codebook_size)

  def quantize(self, params, latents, *, axis=None, perturb=0.0, keys=None):
    """Quantises latents [B, N, C]; see VectorQuantizer.quantize.

    perturb is the probability that a channel moves by one level.
    """
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
      frequencies=_code_frequencies(codes, self.codebook_size, axis),
    )

  def continuous(self, latents):
    """Latents [B, N, C] as vectors like those of codes, without quantisation; [B, N, C]."""
    levels = np.asarray(self.levels)
    return (self._bounded(latents) + levels // 2) / ((levels - 1) / 2) - 1.0

  def _bounded(self, latents):
    levels = np.asarray(self.levels)
    half = (levels - 1) / 2
    # tanh bounds the channels; even numbers of levels are shifted so that rounding reaches each.
    shift = np.where(levels % 2 == 0, 0.5, 0.0)
    return jnp.tanh(latents + np.arctanh(shift / half * 0.999)) * half * 1.001 - shift

  def _perturbed(self, index, probability, keys, levels):
    def one(key, index):
      which, pick = jax.random.split(key)
      replace = jax.random.uniform(which, index.shape) < probability
      step = jnp.where(jax.random.bernoulli(pick, 0.5, index.shape), 1, -1)
      return jnp.where(replace, jnp.clip(index + step, 0, levels - 1), index)

    return jax.vmap(one)(keys, index)

  def _values(self, index):
    return index / ((np.asarray(self.levels) - 1) / 2) - 1.0

  def dequantize(self, params, codes):
    """Maps codes int [...] to vectors [..., C] in [-1, 1]."""
    index = (codes[..., None] // self._basis) % np.asarray(self.levels)
    return self._values(index)

  def revive(self, params, usage, frequencies, latents, key, *, axis=None):
    """Updates the running usage only; see VectorQuantizer.revive."""
    usage = self.usage_decay * usage + (1.0 - self.usage_decay) * frequencies
    return params, usage, jnp.zeros((), jnp.int32)
