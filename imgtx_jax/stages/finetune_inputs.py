"""What fine-tuning asks to be rendered: codes of images or of the bank, labels, prefixes, noise."""

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.sampling import autoregressive


def draw_task(options, bank, codes, labels, key, step, index, *, classes):
  """What each example is asked to render: its codes, label, prefix k and noise.

  options: config.finetune. codes int [B, N] and labels int [B] of the images; bank int
  [classes, rows, N]. real is 1 where the codes are the image's own, 0 where the GPT sampled them
  for that label.
  """

  def draw(name, shape=()):
    return rng.uniform(rng.stream(key, name, step), index, shape)

  own = draw("bank_share") < options.bank_share
  row = (draw("bank_row") * options.bank_rows).astype(jnp.int32)
  codes = jnp.where(own[:, None], bank[labels, row], codes)
  total = codes.shape[1]
  which, size = draw("prefix_kind"), draw("prefix_size")
  prefix = jnp.round(total * size**2).astype(jnp.int32)
  none, full = options.prefix_none_share, options.prefix_full_share
  prefix = jnp.where(which < none, 0, jnp.where(which > 1.0 - full, total, prefix))
  unlabelled = draw("null_label") < options.null_label_share
  return {
    "codes": codes,
    "label": jnp.where(unlabelled, classes, labels),
    "prefix": prefix,
    "noise": rng.normal(rng.stream(key, "noise", step), index, (options.noise_dim,)),
    "real": 1.0 - own.astype(jnp.float32),
  }


def nearest_noise(task, candidates, distance):
  """The task with the one of its candidates, noise [M, B, Z], that comes nearest to the example's
  image; the first where that is not the target (bank rows).

  distance: from noise [B, Z] to [B]. Implicit maximum likelihood (arXiv:1809.09087; conditional,
  arXiv:1811.12373): a reconstruction from whatever noise was drawn would teach the mean image.
  """
  distances = jax.lax.map(distance, candidates)  # [M, B]
  nearest = jnp.where(task["real"] > 0, jnp.argmin(distances, axis=0), 0)
  return task | {"noise": jnp.take_along_axis(candidates, nearest[None, :, None], axis=0)[0]}


def fill_bank(gpt, params, key, *, rows, chunk, options):
  """A bank int [classes, rows, N] of codes that the GPT samples, `chunk` images at a time.

  options: autoregressive.Decoding.
  """
  order = gpt.code_order()
  total = gpt.classes * rows
  chunk = min(chunk, total)
  chunks = -(-total // chunk)
  index = jnp.arange(chunks * chunk).reshape(chunks, chunk)

  def fill(index):
    labels = (index // rows) % gpt.classes
    keys = rng.example_keys(key, index)
    codes, _ = autoregressive.sample_codes(
      gpt, params, labels, keys, steps=len(order), options=options
    )
    return autoregressive.to_raster(codes, order, len(order))[0]

  bank = jax.lax.map(fill, index).reshape(chunks * chunk, -1)[:total]
  return bank.reshape(gpt.classes, rows, -1)
