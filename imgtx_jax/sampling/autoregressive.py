"""Samples codes from the GPT: one compiled loop over cached keys and values."""

import jax
import jax.numpy as jnp

from imgtx_jax.models.transformer import unstack_layers
from imgtx_jax.sampling.options import GUIDANCE

# Temperatures below this take the likeliest code: logits over them would leave float32's range.
GREEDY_BELOW = 1e-20


def guidance_scale(options, position, total):
  """Returns the guidance scale s of one code.

  Args:
    options: SamplingOptions.
    position: of the code, from 0; may be traced.
    total: N.

  Raises:
    ValueError: for an unknown options.guidance.
  """
  full = options.cfg_scale
  progress = position / max(total - 1, 1)
  if options.guidance == "constant":
    return full
  if options.guidance == "interval":
    time = position / total
    return jnp.where((options.cfg_start <= time) & (time < options.cfg_stop), full, 1.0)
  if options.guidance == "linear":
    return 1.0 + (full - 1.0) * progress
  if options.guidance == "power-cosine":
    return 1.0 + (full - 1.0) * (1.0 - jnp.cos(jnp.pi * progress**options.cfg_power)) / 2.0
  raise ValueError(f"unknown guidance {options.guidance!r}: one of {', '.join(GUIDANCE)}")


def filter_logits(logits, options):
  """Divides logits [B, V] by the temperature and sets those outside top-k and top-p to −inf."""
  if options.temperature >= GREEDY_BELOW:
    logits = logits / options.temperature
  if options.top_k and options.top_k < logits.shape[-1]:
    threshold = jax.lax.top_k(logits, options.top_k)[0][:, -1:]
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  if options.top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    probs = jax.nn.softmax(ordered, axis=-1)
    # A code is kept if the likelier ones sum to less than top_p; the likeliest is always kept.
    kept = (jnp.cumsum(probs, axis=-1) - probs < options.top_p).at[:, 0].set(True)
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  return logits


def uniforms(keys, positions):
  """Returns the uniform numbers in [0, 1) that decide codes: keys [B], positions int [N] in the
  GPT's order → [B, N]."""

  def draw(key, position):
    return jax.random.uniform(jax.random.fold_in(key, position))

  return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, positions)


def draw_codes(logits, keys, position, options, path=None):
  """Returns codes int32 [B] at one position out of logits [B, V], each by its own key [B].

  By inverse CDF at a uniform number, over the codes in the order of path (int [V]; default: by
  number). Along a path of like codes, like numbers draw like codes.
  """
  logits = filter_logits(logits, options)
  if options.temperature < GREEDY_BELOW:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  path = jnp.arange(logits.shape[-1]) if path is None else path
  cdf = jnp.cumsum(jax.nn.softmax(logits, axis=-1)[:, path], axis=-1)
  total = cdf[:, -1:]
  below = cdf <= uniforms(keys, jnp.asarray(position)[None]) * total
  # Rounding must not pass the last code that has any probability.
  place = jnp.sum(below & (cdf < total), axis=-1)
  return path[place].astype(jnp.int32)


def sample_codes(gpt, params, labels, keys, *, steps, options, path=None, given=None):
  """Samples the first `steps` codes of an image for each label.

  An image depends on its own key and label, not on its batch.

  Args:
    gpt: a GPT module.
    params: its parameters, stacked or unstacked.
    labels: int [B].
    keys: random keys [B].
    steps: number of codes.
    options: SamplingOptions.
    path: int [V], the codes in the order of draw_codes.
    given: int [B, k], the first k codes in the GPT's order, which are not sampled; or None.

  Returns:
    Codes int32 [B, steps] in the GPT's order, and the condition vectors [B, steps, D] that
    predicted them (with guidance: those of the class, not of the null class).
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
    codes = draw_codes(logits, keys, position, options, path)
    if given is not None:
      codes = jnp.where(position < known, given[:, position], codes)
    return (codes, caches), (codes, states[:batch, 0])

  start = (jnp.zeros(batch, jnp.int32), gpt.init_cache(len(inputs), steps))
  _, (codes, states) = jax.lax.scan(step, start, jnp.arange(steps))
  return codes.swapaxes(0, 1), states.swapaxes(0, 1)


def to_raster(codes, order, length):
  """Puts the first k codes at their raster positions.

  Args:
    codes: int [B, k] in the GPT's order.
    order: int [N], raster indices in the GPT's order.
    length: N.

  Returns:
    Codes int32 [B, N] in raster order, 0 where unknown; and known, bool [N].
  """
  count = codes.shape[1]
  positions = order[:count]
  raster = jnp.zeros((codes.shape[0], length), jnp.int32).at[:, positions].set(codes)
  return raster, jnp.zeros(length, bool).at[positions].set(True)
