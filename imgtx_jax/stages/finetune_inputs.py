"""Draws what fine-tuning renders: codes of images or of the bank, labels, prefixes and noise."""

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.distributed import collectives
from imgtx_jax.sampling import autoregressive

PAIRS = 4  # of uniforms and codes, for each example of a batch: the predictor's batch


def draw(config, variables, codes, labels, key, step, index, *, classes):
  """Draws the inputs of ConditionalGenerator.render for a batch, and which of them are real.

  Args:
    config: the whole config.
    variables: the state's; "bank": codes that the GPT sampled, int [classes, rows, N];
      "bank_uniforms" [classes, rows, N]: the numbers that decided them.
    codes: int [B, N] of the images; labels: int [B].
    key, step, index: of the draws, see rng.py.

  Returns a dict: codes int [B, N], label int [B], prefix int [B], noise [B, Z]; real [B]: 1 where
  the codes are the image's own, 0 where the GPT sampled them for that label.
  """
  options = config.finetune

  def uniform(name):
    return rng.uniform(rng.stream(key, name, step), index)

  own = uniform("bank_share") < options.bank_prob
  row = (uniform("bank_row") * options.bank_rows).astype(jnp.int32)
  codes = jnp.where(own[:, None], variables["bank"][labels, row], codes)
  fresh = rng.uniform(rng.stream(key, "uniforms", step), index, codes.shape[1:])
  uniforms = jnp.where(own[:, None], variables["bank_uniforms"][labels, row], fresh)
  total = codes.shape[1]
  which, size = uniform("prefix_kind"), uniform("prefix_size")
  prefix = jnp.round(total * size**2).astype(jnp.int32)
  none, full = options.prefix_none_prob, options.prefix_full_prob
  prefix = jnp.where(which < none, 0, jnp.where(which > 1.0 - full, total, prefix))
  unlabelled = uniform("null_label") < config.class_dropout
  return {
    "codes": codes,
    "label": jnp.where(unlabelled, classes, labels),
    "prefix": prefix,
    "noise": rng.normal(rng.stream(key, "noise", step), index, (config.generator.noise_dim,)),
    "uniforms": uniforms,
    "real": 1.0 - own.astype(jnp.float32),
  }


def draw_pairs(config, variables, labels, key, step, index):
  """Draws PAIRS rows of the bank for each example, any of its label's, with a prefix: the inputs of
  ConditionalGenerator.predict, of batch PAIRS · B."""

  def uniform(name):
    return rng.uniform(rng.stream(key, name, step), index, (PAIRS,)).reshape(-1)

  total = variables["bank"].shape[2]
  labels = jnp.repeat(labels, PAIRS)
  row = (uniform("pair_row") * variables["bank"].shape[1]).astype(jnp.int32)
  prefix = jnp.floor(total * uniform("pair_prefix_size") ** 2).astype(jnp.int32)
  return {
    "codes": variables["bank"][labels, row],
    "uniforms": variables["bank_uniforms"][labels, row],
    "label": labels,
    "prefix": jnp.where(uniform("pair_prefix_kind") < 0.5, 0, prefix),
  }


def draw_candidates(config, key, step, index):
  """Returns finetune.noise_candidates noises for each example, [M, B, Z]."""
  shape = (config.finetune.noise_candidates, config.generator.noise_dim)
  noise = rng.normal(rng.stream(key, "noise_candidates", step), index, shape)
  return jnp.swapaxes(noise, 0, 1)


def nearest_noise(distance, candidates, real):
  """Returns the noise [B, Z] among candidates [M, B, Z] whose image is closest to the example's.

  It is the first candidate where real [B] is 0, for bank rows have no image. distance: noise [B, Z]
  → distance of the rendered images [B]. This is implicit maximum likelihood (arXiv:1809.09087;
  conditional, arXiv:1811.12373): reconstruction from a single draw would teach the mean image.
  """
  distances = jax.lax.map(distance, candidates)  # [M, B]
  nearest = jnp.where(real > 0, jnp.argmin(distances, axis=0), 0)
  return jnp.take_along_axis(candidates, nearest[None, :, None], axis=0)[0]


def fill_bank(gpt, params, key, *, rows, chunk, options, path, axis):
  """Samples a bank of codes int [classes, rows, N] from the GPT; returns it, and the uniform
  numbers [classes, rows, N] that decided each code. Both in raster order.

  chunk: images at a time, over all devices, each of which samples its part. options:
  SamplingOptions. path: see autoregressive.draw_codes. axis: see Stage.step.
  """
  order = gpt.code_order()
  total = gpt.classes * rows
  devices = 1 if axis is None else jax.lax.axis_size(axis)
  chunk = -(-min(chunk, total) // devices)  # of this device
  chunks = -(-total // (devices * chunk))
  index = collectives.example_index(chunks * chunk, axis).reshape(chunks, chunk)

  def fill(index):
    index = collectives.split_batch(index)
    labels = (index // rows) % gpt.classes
    keys = rng.example_keys(key, index)
    codes, _ = autoregressive.sample_codes(
      gpt, params, labels, keys, steps=len(order), options=options, path=path
    )
    uniforms = autoregressive.uniforms(keys, jnp.arange(len(order)))
    return {"bank": to_raster(codes), "bank_uniforms": to_raster(uniforms)}

  def to_raster(x):
    return jnp.zeros_like(x).at[:, order].set(x)

  def whole(x):
    x = collectives.all_gather(x.reshape(chunks * chunk, -1), axis)[:total]
    return x.reshape(gpt.classes, rows, -1)

  return jax.tree.map(whole, jax.lax.map(fill, index))
