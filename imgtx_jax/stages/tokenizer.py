"""Stage "tokenizer": images to codes and back.

Trains an encoder, a quantizer and a decoder on reconstruction, LPIPS, code losses and, if asked, a
Discriminator (VQGAN, arXiv:2012.09841; Transformer encoder, and the Generator as decoder, as
arXiv:2110.04627; or the convolutional ones of models/vqgan.py).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax import rng
from imgtx_jax.distributed import collectives
from imgtx_jax.losses import perceptual, pixels
from imgtx_jax.metrics import codebook as code_metrics
from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.stages import adversarial, base, builders, online_fd
from imgtx_jax.training import optimizer
from imgtx_jax.training.train_state import TrainState

# Of the training and the held-out images that the baseline compares, at most.
BASELINE_IMAGES, BASELINE_BYTES = 8192, 2**28


class TokenizerStage(base.Stage):
  """The stage "tokenizer"; see the module's docstring, and base.py for the contract."""

  name = "tokenizer"
  sources = ()

  def __init__(self, config, classes):
    super().__init__(config, classes)
    self.options = config.tokenizer
    self.tokenizer = builders.make_tokenizer(config)
    self.tx = optimizer.make(base.optimizer_options(config, self.options.optimizer), self.steps)
    self.adversary = None
    if self.options.adversarial_weight:
      self.adversary = adversarial.of_stage(config, self.name, classes, self.tokenizer.decoder.taps)
    conditioned = [f"after layer {depth}" for depth in self.tokenizer.decoder.taps]
    self.captions = {"reconstructions": ["original", *conditioned, "reconstruction"]}

  def init(self, key, batch_shape, restored):
    images = jnp.zeros((1, *batch_shape[1:]))
    params = self.tokenizer.init(rng.stream(key, "init", 0), images)
    opt_state = {"tokenizer": self.tx.init(params)}
    ema = jax.tree.map(jnp.copy, params)
    if self.adversary:
      player, player_state = self.adversary.init(rng.stream(key, "init_adversary", 0), images)
      params["discriminator"], opt_state["discriminator"] = player, player_state
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=opt_state,
      ema=ema,
      variables={"usage": self.tokenizer.quantizer.init_usage()},
      frozen=self.frozen(restored),
    )

  def step(self, state, batch, key, *, axis):
    index = collectives.example_index(len(batch["image"]), axis)
    images = self.prepare(batch, key, state.step, index)
    params = dict(state.params)
    others = {"discriminator": params.pop("discriminator")} if self.adversary else {}

    def forward(params):
      return self._forward(params, images, key, state.step, index, axis)

    (image, taps, code_parts), pull, (counts, latents) = jax.vjp(forward, params, has_aux=True)

    def gradient(against):
      loss_fn = functools.partial(self._loss, state, images)
      gradients, parts = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)(image, taps, code_parts)
      if against:
        opposing, more = jax.grad(
          lambda image, taps: against(image, taps)[::2], argnums=(0, 1), has_aux=True
        )(image, taps)
        gradients, ratio = self._oppose(gradients, opposing, pull, state.step, axis)
        parts |= more | ratio
      return gradients, parts

    after, metrics = adversarial.adversarial_step(
      state.replace(params={"tokenizer": params} | others, ema={"tokenizer": state.ema}),
      gradient,
      lambda gradients: {"tokenizer": pull(gradients)[0]},
      {"tokenizer": self.tx},
      adversary=self.adversary,
      real=images,
      fake=(image, taps),
      labels=batch["label"],
      ema_decay=self.options.ema_decay,
      key=key,
      index=index,
      axis=axis,
    )
    others = dict(after.params)
    params, ema, usage, revived = self._revive(
      state, others.pop("tokenizer"), after.ema["tokenizer"], counts, latents, key, axis
    )
    return after.replace(params=params | others, ema=ema, variables={"usage": usage}), metrics | {
      "codes_revived": revived.astype(jnp.float32)
    }

  def _forward(self, params, images, key, step, index, axis):
    latents = self.tokenizer.latents(params, images)
    quantized = self.tokenizer.quantizer.quantize(params["quantizer"], latents, axis=axis)
    vectors = quantized.vectors
    if self.options.continuous_prob:
      draw = rng.uniform(rng.stream(key, "continuous", step), index)[:, None, None]
      continuous = self.tokenizer.quantizer.continuous(latents)
      vectors = jnp.where(draw < self.options.continuous_prob, continuous, vectors)
    image, taps = self.tokenizer.render(params, vectors)
    losses = (image, [tap for tap, _ in taps], quantized.losses)
    return losses, (quantized.frequencies, latents)

  def _loss(self, state, images, image, taps, code_parts):
    """Computes all but the adversarial part; (total, metrics)."""

    def distance(x):
      parts = (
        (self.options.l2_weight, pixels.squared_error),
        (self.options.l1_weight, pixels.absolute_error),
        (self.options.gradient_weight, pixels.gradient_difference),
      )
      return sum(weight * loss(x, images).mean() for weight, loss in parts if weight)

    parts = {"reconstruction": distance(image)} | code_parts
    total = sum(parts.values())
    if taps:
      parts["taps"] = sum(distance(tap) for tap in taps) / len(taps)
      total += base.TAP_WEIGHT * parts["taps"]
    if self.lpips_weight and "lpips" in state.frozen:
      found = perceptual.lpips(state.frozen["lpips"], images, image, dtype=self.dtype)
      parts["lpips"] = found.mean()
      total += self.lpips_weight * parts["lpips"]
    return total, parts | {"loss": total}

  def _oppose(self, cotangents, opposing, pull, step, axis):
    """Adds to cotangents (image, taps, code parts) the adversarial loss's (image, taps) by its
    weight; returns them and metrics.

    adversarial_adaptive: the weight is multiplied by the ratio of the gradients of reconstruction
    and adversarial loss at the decoder's last layer (VQGAN, arXiv:2012.09841).
    """
    metrics = {}
    started = step >= self.options.adversarial_start_steps
    weight = jnp.where(started, self.options.adversarial_weight, 0.0)
    if self.options.adversarial_adaptive:
      ratio = self._gradient_ratio(pull, cotangents, opposing, axis)
      metrics["adversarial_ratio"] = ratio
      weight *= ratio
    added = jax.tree.map(lambda a, b: a + weight * b, cotangents[:2], opposing)
    return (*added, cotangents[2]), metrics

  def _gradient_ratio(self, pull, cotangents, opposing, axis):
    """Returns the norm of the reconstruction's gradient at the last layer over the adversarial
    loss's.

    Both are of the whole batch: a ratio of each device's own would differ with their number.
    """
    nothing = jax.tree.map(jnp.zeros_like, cotangents)
    norms = []
    for image in (cotangents[0], opposing[0]):
      (grads,) = pull((image, *nothing[1:]))  # of which the compiler keeps the last layer's
      kernel = collectives.pmean(self.tokenizer.last_kernel(grads), axis)
      norms.append(jnp.sqrt(jnp.sum(kernel**2)))
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)

  def guard(self, step, means):
    started = step > self.options.adversarial_start_steps
    return self.adversary.guard(means) if self.adversary and started else None

  def _revive(self, state, params, ema, counts, latents, key, axis):
    codes = self.tokenizer.quantizer
    before = params["quantizer"]
    after, usage, revived = codes.revive(
      before,
      state.variables["usage"],
      counts,
      latents,
      rng.stream(key, "revive", state.step),
      axis=axis,
    )
    # A revived row has no past worth averaging.
    averaged = jax.tree.map(
      lambda e, b, a: jnp.where(a == b, e, a), ema["quantizer"], before, after
    )
    return params | {"quantizer": after}, ema | {"quantizer": averaged}, usage, revived

  def evaluators(self):
    found = {"validation": base.Evaluator(self._sums, self._figures)}
    if self.fd_images:
      found["reconstructions"] = base.Evaluator(
        self._distance_rows, self._distance_figures, self.fd_images
      )
    return found

  def _sums(self, state, batch, key, *, axis):
    images = self.prepare(batch)
    codes = self.tokenizer.encode(state.ema, images)
    decoded = self.tokenizer.decode(state.ema, codes)
    figures = self.reconstruction_figures(images, decoded)
    if self.options.continuous_prob:
      latents = self.tokenizer.latents(state.ema, images)
      continuous = self.tokenizer.quantizer.continuous(latents)
      decoded = self.tokenizer.render(state.ema, continuous)[0]
      figures["continuous_psnr"] = image_metrics.psnr(images, decoded)
    return self.masked_sums(batch, figures) | {
      "code_counts": jnp.zeros(self.tokenizer.quantizer.codebook_size)
      .at[codes]
      .add(batch["mask"][:, None])
    }

  def _figures(self, sums):
    counts = np.asarray(sums.pop("code_counts"))
    return self.with_grid_ratio(self.means(sums)) | {
      "codes_used": code_metrics.usage(counts),
      "code_perplexity": code_metrics.perplexity(counts),
    }

  def _distance_rows(self, state, batch, key, *, axis):
    images = self.prepare(batch)
    decoded = self.tokenizer.decode(state.ema, self.tokenizer.encode(state.ema, images))
    shown = {"decoded": decoded, "real": images}
    return {"rows": online_fd.rows(state.frozen, shown, batch, axis)}

  def _distance_figures(self, sums):
    return {f"r{name}": value for name, value in online_fd.figures(sums["rows"], "decoded").items()}

  def pictures(self, state, batch, key):
    images = self.prepare(batch)[: base.MAX_COLUMNS]
    codes = self.tokenizer.encode(state.ema, images)
    vectors = self.tokenizer.quantizer.dequantize(state.ema["quantizer"], codes)
    image, taps = self.tokenizer.render(state.ema, vectors)
    return {"reconstructions": jnp.stack([images, *[tap for tap, _ in taps], image])}

  def baselines(self, training, held_out):
    size = self.config.data.image_size
    limit = min(BASELINE_IMAGES, BASELINE_BYTES // (3 * size**2))
    nearest = image_metrics.nearest_psnr(held_out(limit), training(limit))
    return {"nearest_training_image_psnr": float(nearest.mean())}
