"""Stage "pretrain": the GPT learns the tokenizer's codes by next-code cross-entropy.

The class is dropped for a fraction of the examples, so that guidance has a null class to lean on
(arXiv:2207.12598, LlamaGen arXiv:2406.06525). Codes come from a cache (config.pretrain.code_cache),
or the step encodes its images.
"""

import jax
import jax.numpy as jnp
import optax

from imgtx_jax import rng
from imgtx_jax.config import defaults as configs
from imgtx_jax.data import transforms
from imgtx_jax.distributed import collectives
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.sampling import autoregressive
from imgtx_jax.stages import base, builders, online_fd
from imgtx_jax.training import gradient_accumulation, optimizer
from imgtx_jax.training.train_state import TrainState, update_ema

# Keys of encoder and quantizer that change how codes are learned or computed, not what they are.
_NOT_OF_CODES = ("commitment", "entropy")


class PretrainStage(base.Stage):
  """The stage "pretrain"; see the module's docstring, and base.py for the contract."""

  name = "pretrain"
  sources = ("tokenizer",)
  draws_with = ("codes",)

  def __init__(self, config, classes):
    super().__init__(config, classes)
    self.options = config.pretrain
    self.class_dropout = config.class_dropout
    self.tokenizer = builders.make_tokenizer(config)
    self.gpt = builders.make_gpt(config, classes)
    self.order = self.gpt.code_order()
    self.permutes = bool(self.options.permute_steps + self.options.permute_anneal_steps)
    self.tx = optimizer.make(base.optimizer_options(config, self.options.optimizer), self.steps)
    self.code_hyperparameters = {
      key: value
      for key, value in configs.flatten(config).items()
      if key.startswith(("patch", "window", "tokenizer_kind", "encoder.", "quantizer.", "vqgan."))
      if key.split(".")[-1] not in _NOT_OF_CODES
    }

  def inputs(self, restored):
    if not self.options.code_cache:
      return None
    tokenizer = restored["tokenizer"]["ema"]
    return base.CodeInputs(
      folder=self.options.code_cache,
      crops=self.options.cache_crops,
      scales=tuple(self.options.cache_scales),
      encode=lambda params, images: self.tokenizer.encode(params, transforms.normalize(images)),
      params={name: tokenizer[name] for name in ("encoder", "quantizer")},
      hyperparameters=self.code_hyperparameters,
      num_codes=self.num_codes,
      codebook_size=self.gpt.codebook_size,
      batch_size=self.batch_size,
    )

  def init(self, key, batch_shape, restored):
    if "finetune" in restored:  # a later round goes on with the averaged GPT that it left
      params = {"gpt": restored["finetune"]["ema"]["gpt"]}
    else:
      params = self.init_gpt(key)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state={"gpt": self.tx.init(params)},
      ema=jax.tree.map(jnp.copy, params),
      variables={"code_counts": jnp.zeros(self.gpt.codebook_size)},
      frozen=self.frozen(restored),
    )

  def frozen(self, restored):
    return {"tokenizer": restored["tokenizer"]["ema"]} | self.perceptual_weights()

  def init_gpt(self, key):
    """Returns random parameters {"gpt": …}."""
    codes = jnp.zeros((1, len(self.order)), jnp.int32)
    params = self.gpt.init(rng.stream(key, "init_gpt", 0), codes, jnp.zeros(1, jnp.int32))
    return {"gpt": params["params"]}

  def step(self, state, batch, key, *, axis):
    index = collectives.example_index(len(batch["label"]), axis)
    if "codes" in batch:
      codes = batch["codes"]
    else:
      images = self.augment(self.prepare(batch, key, state.step, index), key, state.step, index)
      codes = self.tokenizer.encode(state.frozen["tokenizer"], images)
    drop = rng.uniform(rng.stream(key, "class_dropout", state.step), index) < self.class_dropout
    labels = jnp.where(drop, self.classes, batch["label"])

    orders = self.draw_orders(key, state.step, index)
    targets = jnp.take_along_axis(codes, orders, axis=1)

    def loss_fn(params, part):
      codes, labels, orders, targets, index = part
      logits, _ = self.gpt.apply(
        {"params": params["gpt"]},
        codes,
        labels,
        orders=orders if self.permutes else None,
        example_index=index,
        rngs={"dropout": rng.stream(key, "dropout", state.step)},
      )
      loss = code_losses.next_code(logits, targets).mean()
      return loss, {
        "loss": loss,
        "bits_per_code": code_losses.bits(loss),
        "accuracy": code_losses.accuracy(logits, targets).mean(),
      }

    grads, metrics = gradient_accumulation.mean_over_parts(
      lambda part: jax.grad(loss_fn, has_aux=True)(state.params, part),
      (codes, labels, orders, targets, index),
      self.options.grad_accum_steps,
    )
    shares = jnp.zeros(self.gpt.codebook_size).at[codes.reshape(-1)].add(1.0 / codes.size)
    grads, metrics, shares = collectives.pmean((grads, metrics, shares), axis)
    params, opt_state = optimizer.update(
      self.tx, grads, state.opt_state["gpt"], state.params, state.rate
    )
    counts = state.variables["code_counts"] + shares * self.batch_size * len(self.order)
    return state.replace(
      step=state.step + 1,
      params=params,
      opt_state={"gpt": opt_state},
      ema=update_ema(state.ema, params, self.options.ema_decay, state.step),
      variables={"code_counts": counts},
    ), metrics | {"gradient_norm": optax.tree.norm(grads)}

  def augment(self, images, key, step, index):
    """Returns images [B, H, W, 3], a fraction of them varied; see transforms.random_variations."""
    if not self.options.augment_prob:
      return images
    keys = rng.example_keys(rng.stream(key, "augment", step), index)
    return transforms.random_variations(images, keys, self.options.augment_prob)

  def draw_orders(self, key, step, index):
    """Draws the order of codes of each example, int [B, N].

    It is a permutation for a fraction of them, which is annealed to none (RAR, arXiv:2411.00776),
    and the GPT's own order for the others.
    """
    own = jnp.broadcast_to(self.order, (len(index), self.num_codes))
    if not self.permutes:
      return own
    start, length = self.options.permute_steps, self.options.permute_anneal_steps
    share = jnp.clip(1.0 - (step - start) / max(length, 1), 0.0, 1.0)
    permuted = rng.uniform(rng.stream(key, "permuted", step), index) < share
    keys = rng.example_keys(rng.stream(key, "permutation", step), index)
    orders = jax.vmap(lambda k: jax.random.permutation(k, self.num_codes))(keys)
    return jnp.where(permuted[:, None], orders, own)

  def evaluators(self):
    return {
      "validation": base.Evaluator(self._sums, self.means),
      "samples": base.Evaluator(self._sample_sums, self._sample_figures, self.fd_images),
    }

  def _sums(self, state, batch, key, *, axis):
    codes = self.tokenizer.encode(state.frozen["tokenizer"], self.prepare(batch))
    counts = state.variables["code_counts"]
    figures = prediction_figures(self.gpt, state.ema["gpt"], counts, codes, batch["label"])
    return self.masked_sums(batch, figures)

  def _sample_sums(self, state, batch, key, *, axis):
    """Sums over one sample of each held-out image's label, of what tells the two apart."""
    labels = batch["label"]
    index = collectives.example_index(len(labels), axis)
    keys = rng.example_keys(rng.stream(key, "samples", 0), index)
    images = self.prepare(batch)
    samples, _ = self.sample(
      self.current_params(state), labels, keys, self.sampling, prefix=self.num_codes
    )
    sums = self.masked_sums(batch, self.grid_figures(images, samples))
    if self.fd_images:
      shown = {"samples": samples, "real": images}
      sums["rows"] = online_fd.rows(state.frozen, shown, batch, axis)
    return sums

  def _sample_figures(self, sums):
    rows = sums.pop("rows", None)
    figures = self.with_grid_ratio(self.means(sums))
    return figures | (online_fd.figures(rows, "samples") if rows else {})

  @property
  def num_codes(self):
    """Returns N, the number of codes of an image."""
    return len(self.order)

  def drawing_params(self, results):
    """Returns the params that sample takes, from the results of the stages up to this one."""
    return {"gpt": results["pretrain"]["ema"]["gpt"], "tokenizer": results["tokenizer"]["ema"]}

  def sample(self, params, labels, keys, options, *, prefix, given=None):
    """Samples all codes of labels int [B] from the GPT (prefix must be N) and decodes them with the
    tokenizer: images [B, H, W, 3], and the codes int [B, N] in raster order. given: see
    autoregressive.sample_codes."""
    if prefix != self.num_codes:
      raise ValueError(f"the tokenizer decodes all {self.num_codes} codes, not {prefix}")
    codes, _ = autoregressive.sample_codes(
      self.gpt,
      params["gpt"],
      labels,
      keys,
      steps=self.num_codes,
      options=options,
      path=self.tokenizer.quantizer.path(params["tokenizer"]["quantizer"]),
      given=given,
    )
    codes, _ = autoregressive.to_raster(codes, self.order, len(self.order))
    return self.tokenizer.decode(params["tokenizer"], codes), codes

  def pictures(self, state, batch, key):
    labels, rows = base.picture_labels(self.pictured, self.classes)
    keys = rng.example_keys(rng.stream(key, "pictures", 0), jnp.arange(len(labels)))
    images, _ = self.sample(
      self.current_params(state), labels, keys, self.sampling, prefix=self.num_codes
    )
    return {"samples": images.reshape(rows, -1, *images.shape[1:])}


def prediction_figures(gpt, params, code_counts, codes, labels):
  """Returns the GPT's bits per code and accuracy [B] on codes int [B, N] with labels int [B], and
  the bits per code of the unigram distribution that code_counts [V] of the training codes give."""
  logits, _ = gpt.apply({"params": params}, codes, labels)
  targets = codes[:, gpt.code_order()]
  # One count more for every code, so that a held-out code is never impossible.
  unigram = -jnp.log2((code_counts + 1.0) / jnp.sum(code_counts + 1.0))
  return {
    "bits_per_code": code_losses.bits(code_losses.next_code(logits, targets)),
    "unigram_bits_per_code": unigram[codes].mean(axis=-1),
    "accuracy": code_losses.accuracy(logits, targets).mean(axis=-1),
  }
