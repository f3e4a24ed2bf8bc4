"""Samples codes from the GPT: one compiled loop over cached keys and values."""

import dataclasses

import jax
import jax.numpy as jnp

from imgtx_jax.models.transformer import unstack_layers

GUIDANCE = ("constant", "interval", "linear", "power-cosine")


@dataclasses.dataclass(frozen=True)
class Decoding:
  """Options of drawing codes.

  cfg_scale s: the logits are u + s (c − u), u for the null class and c for the class
  (arXiv:2207.12598); 1 is no guidance. guidance: how s changes over the codes t of N:
    constant       s
    interval       s for cfg_start ≤ t/N < cfg_stop, else 1 (arXiv:2404.07724)
    linear         from 1 at the first code to s at the last
    power-cosine   1 + (s − 1)(1 − cos(π (t/(N − 1))^cfg_power)) / 2 (arXiv:2411.00776)
  Then come temperature (0 takes the likeliest code), top_k (0: all) and top_p (1: all).
  """

  cfg_scale: float = 1.0
  guidance: str = "constant"
  cfg_start: float = 0.0
  cfg_stop: float = 1.0
  cfg_power: float = 2.75
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


def guidance_scale(options, position, total):
  """Returns the scale s of guidance at code `position` (from 0, may be traced) of `total`."""
  full = options.cfg_scale
  share = position / max(total - 1, 1)
  if options.guidance == "constant":
    return full
  if options.guidance == "interval":
    place = position / total
    return jnp.where((options.cfg_start <= place) & (place < options.cfg_stop), full, 1.0)
  if options.guidance == "linear":
    return 1.0 + (full - 1.0) * share
  if options.guidance == "power-cosine":
    return 1.0 + (full - 1.0) * (1.0 - jnp.cos(jnp.pi * share**options.cfg_power)) / 2.0
  raise ValueError(f"unknown guidance {options.guidance!r}: one of {', '.join(GUIDANCE)}")


def filter_logits(logits, options):
  """Returns logits [B, V] after temperature, −inf for codes that top-k or top-p leave out."""
  if options.temperature > 0:
    logits = logits / options.temperature
  if options.top_k and options.top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, options.top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if options.top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    shares = jax.nn.softmax(ordered, axis=-1)
    # A code stays while those before it sum to less than top_p; the first is always kept.
    kept = (jnp.cumsum(shares, axis=-1) - shares < options.top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def sample_codes(gpt, params, labels, keys, *, steps, options, given=None):
  """Draws the first `steps` codes of an image for each label.

  gpt: a GPT module; params: its parameters, stacked or unstacked; labels int [B]; keys [B], one
  per image: an image depends on its own key and label, not on its batch. given int [B, k]: the
  first k codes in the GPT's order, which are taken as they are.

  Returns codes int32 [B, steps] in the GPT's order, and the condition vectors [B, steps, D] that
  predicted them (of the conditional branch, under guidance).
  """
  gpt = gpt.clone(scan=False)
  params = unstack_layers(params)
  batch = labels.shape[0]
  total = gpt.shape[0] * gpt.shape[1]
  guided = options.cfg_scale != 1.0
  inputs = jnp.concatenate([labels, jnp.full_like(labels, gpt.classes)]) if guided else labels
  if given is not None:
    known = given.shape[1]
    given = jnp.pad(given.astype(jnp.int32), ((0, 0), (0, max(steps - known, 0))))

  def step(carry, position):
    codes, caches = carry
    tokens = jnp.concatenate([codes, codes]) if guided else codes
    logits, states, caches = gpt.apply(
      {"params": params}, tokens[:, None], inputs, caches=caches, position=position
    )
    logits = logits[:, 0]
    if guided:
      conditional, free = logits[:batch], logits[batch:]
      logits = free + guidance_scale(options, position, total) * (conditional - free)
    logits = filter_logits(logits, options)
    if options.temperature > 0:
      draws = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
      codes = jax.vmap(jax.random.categorical)(draws, logits)
    else:
      codes = jnp.argmax(logits, axis=-1)
    codes = codes.astype(jnp.int32)
    if given is not None:
      codes = jnp.where(position < known, given[:, position], codes)
    return (codes, caches), (codes, states[:batch, 0])

  start = (jnp.zeros(batch, jnp.int32), gpt.init_cache(len(inputs), steps))
  _, (codes, states) = jax.lax.scan(step, start, jnp.arange(steps))
  return codes.swapaxes(0, 1), states.swapaxes(0, 1)


def to_raster(codes, order, length):
  """Puts the first k codes [B, k] in their raster places: codes int [B, N], 0 where unknown, and
  known bool [N]."""
  count = codes.shape[1]
  places = order[:count]
  raster = jnp.zeros((codes.shape[0], length), jnp.int32).at[:, places].set(codes)
  return raster, jnp.zeros(length, bool).at[places].set(True)
