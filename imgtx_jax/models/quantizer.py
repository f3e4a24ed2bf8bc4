"""Vector quantisation: maps latents to codes and back.

VectorQuantizer has pure functions of a small parameter dict:

  init(key) → params;  init_usage() → usage [V];  quantize(params, latents, …) → Quantized;
  continuous(latents) → vectors [B, N, C];  dequantize(params, codes) → vectors [..., C];
  revive(…) → params, usage, number of codes revived.

Batch statistics are averaged over the mapped axis `axis` inside, so that pmap and jit agree.
Dimensions: B batch, N codes of an image, C channels of a code, V codebook size.
"""

import dataclasses
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp

from imgtx_jax.distributed import collectives

_POWER_ITERATIONS = 8  # for a principal component


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
  """

  codebook_size: int
  code_dim: int
  commitment: float = 0.25
  entropy: float = 0.0
  entropy_temperature: float = 0.01
  usage_decay: float = 0.99
  revive_below: float = 0.05

  def init(self, key):
    """Returns {"codebook": [V, C]} with rows on the unit sphere."""
    shape = (self.codebook_size, self.code_dim)
    return {"codebook": normalize(jax.random.normal(key, shape))}

  def init_usage(self):
    """Returns the initial running frequencies [V], all zero."""
    return jnp.zeros(self.codebook_size)

  def quantize(self, params, latents, *, axis=None):
    """Quantises latents.

    Args:
      params: {"codebook": [V, C]}.
      latents: [B, N, C].
      axis: name of the mapped axis under pmap, else None.

    Returns:
      Quantized.
    """
    z = normalize(latents)
    codebook = normalize(params["codebook"])
    similarity = jnp.einsum("bnc,vc->bnv", z, codebook, precision="highest")
    codes = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
    frequencies = _code_frequencies(codes, self.codebook_size, axis)
    nearest = codebook[codes]
    losses = {
      "codebook": jnp.mean((nearest - jax.lax.stop_gradient(z)) ** 2),
      "commitment": self.commitment * jnp.mean((jax.lax.stop_gradient(nearest) - z) ** 2),
    }
    if self.entropy:
      losses["entropy"] = self.entropy * self._entropy(similarity, axis)
    vectors = z + jax.lax.stop_gradient(nearest - z)
    return Quantized(vectors=vectors, codes=codes, losses=losses, frequencies=frequencies)

  def continuous(self, latents):
    """Maps latents [B, N, C] to the range of code vectors without quantisation; [B, N, C]."""
    return normalize(latents)

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

  def path(self, params):
    """Returns the codes along a path through the codebook on which neighbours are alike, int [V].

    The codes are halved at the median of their first principal component, the halves again at that
    of theirs, and so on; each part is passed through in the direction from the part before it to
    the one after it.
    """
    vectors = normalize(params["codebook"])
    order = jnp.arange(self.codebook_size)
    for level in range((self.codebook_size - 1).bit_length()):
      parts = 2**level
      part = jnp.arange(self.codebook_size) * parts // self.codebook_size
      total = functools.partial(jax.ops.segment_sum, segment_ids=part, num_segments=parts)
      x = vectors[order]
      centres = total(x) / total(jnp.ones((len(x), 1)))
      x -= centres[part]
      along = jnp.concatenate([centres[1:], centres[-1:]]) - jnp.concatenate(
        [centres[:1], centres[:-1]]
      )
      along = normalize(along + 1e-3)  # the whole has no neighbours
      component = along
      for _ in range(_POWER_ITERATIONS):
        component = normalize(total(x * jnp.sum(x * component[part], axis=-1, keepdims=True)))
      component *= jnp.sign(jnp.sum(component * along, axis=-1, keepdims=True) + 1e-12)
      order = order[jnp.lexsort((jnp.sum(x * component[part], axis=-1), part))]
    return order

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
