"""Stage "finetune": the generator renders the GPT's condition vectors, against a discriminator.

The generator starts as a copy of the tokenizer's decoder (afresh beside a convolutional tokenizer)
and gains cross-attention to the GPT's hidden states, a modulation by noise and class, and a mask
token for codes beyond the prefix k.
The discriminator's gradient reaches the GPT, or the part of it that config.finetune.gpt_trained
names, through the hidden states that the generator attends to, never through sampling. Relativistic
loss with R1 and R2 (R3GAN arXiv:2501.05441, GAT arXiv:2509.24935), on real codes and on codes that
the GPT sampled (RobusTok, arXiv:2509.12474).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.config import defaults as configs
from imgtx_jax.distributed import collectives
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.losses import perceptual, pixels
from imgtx_jax.sampling import refinement
from imgtx_jax.stages import adversarial, base, builders, finetune_inputs
from imgtx_jax.stages.pretrain import prediction_figures
from imgtx_jax.training import optimizer
from imgtx_jax.training.train_state import TrainState

SEEDED_WEIGHT = 0.25  # least weight of the reconstruction of a seed's image; 1 at k = N
REFINE_STEPS = 10  # in the picture of refined samples, where config.sample asks for none


class FinetuneStage(base.GeneratingStage):
  """The stage "finetune"; see the module's docstring, and base.py for the contract.

  Players: "generator" (generator and mapping), "gpt" and "discriminator", an optimizer each.
  """

  name = "finetune"
  sources = ("tokenizer", "pretrain")
  draws_with = ("codes", "noise", "condition vectors")

  def __init__(self, config, classes):
    super().__init__(config, classes)
    self.options = config.finetune
    self.refresh_steps = self.options.refresh_steps
    self.tokenizer = builders.make_tokenizer(config)
    self.gpt = builders.make_gpt(config, classes)
    self.order = self.gpt.code_order()
    self.networks = builders.make_conditional_generator(config, self.gpt, self.tokenizer.quantizer)
    self.adversary = adversarial.of_stage(
      config, self.name, classes, config.generator.taps, class_weight=1.0
    )
    self.captions = self.tap_captions() | {
      f"refined_k{prefix}": ["sample", "refined"] for prefix in (0, self.num_codes)
    }
    if self.options.memory == "none":
      self.draws_with, self.final_pictures = ("codes", "noise"), None
    # The generator's optimizer is the discriminator's, but for what it has of its own.
    of_generator = base.optimizer_options(
      config, config.adversary.optimizer, self.options.optimizer
    )
    of_gpt = base.optimizer_options(config, self.options.gpt_optimizer)
    self.tx = {
      "generator": optimizer.make(of_generator, self.steps, self.options.freeze),
      "gpt": optimizer.make(of_gpt, self.steps),
    }

  # -- The state -----------------------------------------------------------------------------------

  def init(self, key, batch_shape, restored):
    images = jnp.zeros((1, *batch_shape[1:]))
    if "finetune" in restored:  # a later round goes on with the players of the last
      before = restored["finetune"]["params"]
      generator, discriminator = before["generator"], before["discriminator"]
      discriminator_state = self.adversary.tx.init(discriminator)
    else:
      decoder = restored["tokenizer"]["ema"].get("generator")  # a convolutional one has none
      generator = self.networks.init_generator(
        key,
        decoder if self.options.init_from_decoder else None,
        restored["tokenizer"]["ema"]["quantizer"],
        restored["pretrain"]["variables"]["code_counts"],
      )
      discriminator, discriminator_state = self.adversary.init(
        rng.stream(key, "init_discriminator", 0), images
      )
    gpt = restored["pretrain"]["ema"]["gpt"]
    params = {"generator": generator, "gpt": gpt, "discriminator": discriminator}
    rows = self.options.bank_rows
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state={name: tx.init(params[name]) for name, tx in self.tx.items()}
      | {"discriminator": discriminator_state},
      ema=jax.tree.map(jnp.copy, {name: params[name] for name in self.tx}),
      variables={
        "bank": jnp.zeros((self.classes, rows, len(self.order)), jnp.int32),
        "bank_uniforms": jnp.zeros((self.classes, rows, len(self.order))),
        "code_counts": restored["pretrain"]["variables"]["code_counts"],
      },
      frozen=self.frozen(restored),
    )

  def frozen(self, restored):
    tokenizer = restored["tokenizer"]["ema"]
    used = {name: tokenizer[name] for name in ("encoder", "quantizer")}
    return {"tokenizer": used} | self.perceptual_weights()

  # -- One step ------------------------------------------------------------------------------------

  def step(self, state, batch, key, *, axis):
    index = collectives.example_index(len(batch["image"]), axis)
    images = self.prepare(batch, key, state.step, index)
    codes = self.tokenizer.encode(state.frozen["tokenizer"], images)
    codebook = state.frozen["tokenizer"]["quantizer"]
    labels = batch["label"]
    inputs = finetune_inputs.draw(
      self.config, state.variables, codes, labels, key, state.step, index, classes=self.classes
    )
    (logits, states), pull_gpt = jax.vjp(
      lambda params: self.networks.condition(params, inputs), state.params["gpt"]
    )

    def render(params, states, **changes):
      image, taps = self.networks.render(params, codebook, inputs | changes, states)
      return image, [tap for tap, _ in taps]

    if self.options.noise_candidates > 1:
      inputs["noise"] = finetune_inputs.nearest_noise(
        lambda noise: pixels.distance(
          render(state.params["generator"], states, noise=noise)[0],
          images,
          self.options.gradient_weight,
        ),
        finetune_inputs.draw_candidates(self.config, key, state.step, index),
        inputs["real"],
      )
    (image, taps), pull_generator = jax.vjp(render, state.params["generator"], states)
    of_codes, code_figures = self._code_gradient(state, labels, key, index, axis)
    targets = self._seeded_targets(state, images, inputs, states)

    def gradient(against):
      loss_fn = functools.partial(self._loss, state, targets, inputs, against)
      return jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)(image, taps, logits)

    def pull(gradients):
      *of_image, of_logits = gradients
      of_generator, of_states = pull_generator(tuple(of_image))
      of_generator = jax.tree.map(jnp.add, of_generator, of_codes)
      of_gpt = gpt_gradient(self.options.gpt_trained, pull_gpt, of_logits, of_states)
      return {"generator": of_generator, "gpt": of_gpt}

    state, metrics = adversarial.adversarial_step(
      state,
      gradient,
      pull,
      self.tx,
      adversary=self.adversary,
      real=images,
      fake=(image, taps),
      labels=inputs["label"],
      ema_decay=self.options.ema_decay,
      key=key,
      index=index,
      axis=axis,
    )
    # Where codes are known they tell images apart, whatever the generator does.
    free = 1.0 - inputs["prefix"] / len(self.order)
    metrics |= collectives.pmean(code_figures, axis)
    return state, metrics | {"variety": adversarial.variety(images, image, free, axis)}

  def _seeded_targets(self, state, images, inputs, states):
    """Returns the images, but where the codes are the bank's what the averaged generator renders of
    all of them: what their seed is to become at any prefix."""
    if not self.networks.predictor:
      return images
    whole = {name: x for name, x in inputs.items() if name != "uniforms"}
    whole["prefix"] = jnp.full_like(inputs["prefix"], self.num_codes)
    codebook = state.frozen["tokenizer"]["quantizer"]
    rendered, _ = self.networks.render(
      state.ema["generator"], codebook, whole, jax.lax.stop_gradient(states)
    )
    return jnp.where(inputs["real"][:, None, None, None] > 0, images, rendered)

  def _code_gradient(self, state, labels, key, index, axis):
    """The predictor's gradient on pairs of the bank, as one of the generator's; and its metrics."""
    pairs = finetune_inputs.draw_pairs(self.config, state.variables, labels, key, state.step, index)
    return jax.grad(self._code_loss, has_aux=True)(state.params["generator"], pairs, axis)

  def _code_loss(self, params, pairs, axis):
    """What the predictor is trained on, the bank's codes beyond the prefix: (loss, metrics)."""
    if not self.networks.predictor:
      return 0.0, {}
    known = self.networks.known(pairs["prefix"])
    logits = self.networks.predict(params, pairs, known)
    log_probs = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(log_probs, pairs["codes"][..., None], axis=-1)[..., 0]
    unknown = 1.0 - known
    # A mean over the devices' mean number, so that all devices weigh each code alike.
    unknown /= jnp.maximum(collectives.pmean(jnp.sum(unknown), axis), 1.0)
    loss = jnp.sum(nats * unknown)
    right = jnp.argmax(logits, axis=-1) == pairs["codes"]
    return loss, {
      "predictor_bits": loss / jnp.log(2.0),
      "predictor_accuracy": jnp.sum(right * unknown),
    }

  def _loss(self, state, images, inputs, against, image, taps, logits):
    """Everything that the generator and the GPT are trained on; (total, metrics). against: see
    adversarial_step."""
    options = self.options
    share = inputs["prefix"] / len(self.order)
    # No code, no target: k/N is 0 at k = 0. Bank rows have none either.
    weight = share * (inputs["prefix"] > 0) * inputs["real"]
    known = self.networks.known_pixels(inputs["prefix"])
    if self.networks.predictor:  # a seed's image is the target of all its pixels, at every prefix
      seeded = 1.0 - inputs["real"]
      weight += seeded * jnp.maximum(share, SEEDED_WEIGHT)
      known = jnp.maximum(known, seeded[:, None, None, None])
    if options.reconstruct_all_steps:
      # Unseen inputs make the decoder draw one odd pattern in every patch; the mean image of what
      # is known is a better place to start from, and no place to stay.
      early = jnp.maximum(0.0, 1.0 - state.step / options.reconstruct_all_steps)
      weight = jnp.maximum(weight, early * inputs["real"])
      known = jnp.maximum(known, early)

    def distance(x):
      error = pixels.distance(x, images, options.gradient_weight, known)
      return jnp.mean(weight * error)

    parts = {"reconstruction": distance(image)}
    total = options.reconstruction_weight * parts["reconstruction"]
    if taps:
      parts["taps"] = sum(distance(tap) for tap in taps) / len(taps)
      total += base.TAP_WEIGHT * options.reconstruction_weight * parts["taps"]
    if self.lpips_weight and "lpips" in state.frozen:
      found = perceptual.lpips(state.frozen["lpips"], images, image, dtype=self.dtype)
      parts["lpips"] = jnp.mean(weight * found)
      total += self.lpips_weight * parts["lpips"]
    adversarial_loss, class_loss, more = against(image, taps)
    started = state.step >= options.adversarial_start_steps
    total += jnp.where(started, 1.0, 0.0) * (
      options.adversarial_weight * adversarial_loss + options.class_weight * class_loss
    )
    nats = code_losses.next_code(logits, inputs["codes"][:, self.order])
    parts["next_code"] = jnp.mean(inputs["real"] * nats)
    total += options.next_code_weight * parts["next_code"]
    return total, parts | more | {"loss": total}

  # -- The bank ------------------------------------------------------------------------------------

  def refresh(self, state, key, *, axis):
    """Refills the bank with codes that the averaged GPT samples now, in chunks of one batch, each
    device its part of them."""
    bank = finetune_inputs.fill_bank(
      self.gpt,
      state.ema["gpt"],
      rng.stream(key, "bank", state.step),
      rows=self.options.bank_rows,
      chunk=self.batch_size,
      options=self.sampling,
      path=self.tokenizer.quantizer.path(state.frozen["tokenizer"]["quantizer"]),
      axis=axis,
    )
    return state.replace(variables=state.variables | bank)

  def guard(self, step, means):
    started = step > self.options.adversarial_start_steps
    return self.adversary.guard(means) if started else None

  # -- Samples and figures -------------------------------------------------------------------------

  @property
  def num_codes(self):
    """Returns N, the number of codes of an image."""
    return len(self.order)

  def drawing_params(self, results):
    """Returns the params that sample takes, from the results of the stages up to this one."""
    return results["finetune"]["ema"] | {
      "quantizer": results["tokenizer"]["ema"]["quantizer"],
      "discriminator": results["finetune"]["params"]["discriminator"],
    }

  def sample(self, params, labels, keys, options, *, prefix, given=None):
    """Returns images [B, H, W, 3], codes and taps, see ConditionalGenerator.sample; params as
    drawing_params gives them."""
    (drawn,) = self.sample_prefixes(params, labels, keys, options, (prefix,), given)
    return drawn

  def sample_prefixes(self, params, labels, keys, options, prefixes, given=None):
    def score(image):
      verdict = self.adversary.verdict(params["discriminator"], image, labels)
      return refinement.realness(verdict, labels, self.classes)

    return self.networks.sample(params, labels, keys, options, prefixes, given=given, score=score)

  def prefixes(self):
    """Returns the prefixes that are shown while training: 0, N/16, N/4 and N."""
    total = len(self.order)
    return tuple(sorted({0, total // 16, total // 4, total}))

  def final_pictures(self, state, batch, key):
    """Returns samples, each above the one with refined condition vectors."""
    labels, rows = base.picture_labels(self.pictured, self.classes)
    labels = labels[: len(labels) // rows]
    options = self.sampling
    ways = [
      dataclasses.replace(options, refine_steps=steps)
      for steps in (0, options.refine_steps or REFINE_STEPS)
    ]
    prefixes = (0, self.num_codes)
    drawn = [self.draw_pictures(state, labels, key, way, prefixes) for way in ways]
    return {
      f"refined_k{prefix}": jnp.stack([images for images, *_ in pair])
      for prefix, *pair in zip(prefixes, *drawn, strict=True)
    }

  def evaluators(self):
    return {
      "validation": base.Evaluator(self._sums, self._figures),
      "samples": self.samples_evaluator(),
    }

  def _sums(self, state, batch, key, *, axis):
    images = self.prepare(batch)
    labels = batch["label"]
    index = collectives.example_index(len(labels), axis)
    codes = self.tokenizer.encode(state.frozen["tokenizer"], images)
    figures = prediction_figures(
      self.gpt, state.ema["gpt"], state.variables["code_counts"], codes, labels
    )
    inputs = {"codes": codes, "label": labels}
    _, states = self.networks.condition(state.ema["gpt"], inputs)

    def render(prefix, name):
      noise = rng.normal(rng.stream(key, name, 0), index, (self.networks.noise_dim,))
      asked = inputs | {
        "noise": noise,
        "prefix": jnp.full(len(labels), prefix),
        "uniforms": rng.uniform(rng.stream(key, f"{name}_uniforms", 0), index, codes.shape[1:]),
      }
      codebook = state.frozen["tokenizer"]["quantizer"]
      return self.networks.render(state.ema["generator"], codebook, asked, states)[0]

    decoded = render(len(self.order), "noise")
    figures |= self.reconstruction_figures(images, decoded)
    # Two noises on one real prefix: how much the noise is heard.
    first, second = (render(self.num_codes // 4, name) for name in ("noise", "other_noise"))
    figures["diversity_rms"] = jnp.sqrt(jnp.mean((first - second) ** 2, axis=(1, 2, 3)))
    if "lpips" in state.frozen:
      figures["diversity_lpips"] = perceptual.lpips(state.frozen["lpips"], first, second)
    none = render(0, "noise")
    figures |= self.verdict_figures(state, images, none, labels)
    return self.masked_sums(batch, figures)

  def _figures(self, sums):
    return self.with_grid_ratio(self.means(sums))


def gpt_gradient(trained, pull, of_logits, of_states):
  """Returns the gradients of the GPT from those of its logits and of its condition vectors.

  The next-code loss, through the logits, trains all of it; what comes through the condition
  vectors trains the part that `trained` (config.finetune.gpt_trained) names. pull: jax.vjp's,
  (logits, states) → (tree,).
  """
  if trained == "all":
    return pull((of_logits, of_states))[0]
  (grads,) = pull((of_logits, jnp.zeros_like(of_states)))
  last = configs.last_layers(trained)
  if not last:
    return grads
  (of_image,) = pull((jnp.zeros_like(of_logits), of_states))
  blocks = jax.tree.map(
    lambda to, g: to.at[-last:].add(g[-last:]),  # the layer's axis is the first
    grads["transformer"]["layers"],
    of_image["transformer"]["layers"],
  )
  norm = jax.tree.map(jnp.add, grads["norm"], of_image["norm"])
  return grads | {"transformer": {"layers": blocks}, "norm": norm}
