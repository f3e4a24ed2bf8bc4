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

import jax
import jax.numpy as jnp
import optax

from imgtx_jax import rng
from imgtx_jax.distributed import sharding
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.losses import perceptual, pixels
from imgtx_jax.sampling import refinement
from imgtx_jax.stages import adversarial, base, builders, finetune_inputs, generating
from imgtx_jax.stages.gpt_gradient import gpt_gradient
from imgtx_jax.stages.pretrain import PretrainStage
from imgtx_jax.training import optimizer
from imgtx_jax.training.train_state import TrainState, update_ema

REFINE_STEPS = 10  # in the picture of refined samples, where config.sample asks for none


class FinetuneStage(generating.GeneratingStage):
  """See the module's docstring; the contract is stage.Stage.

  Players: "generator" (generator and mapping), "gpt" and "discriminator", an optimizer each.
  """

  name = "finetune"
  sources = ("tokenizer", "pretrain")
  draws_with = ("codes", "noise", "condition vectors")

  def __init__(self, config, classes):
    super().__init__(config, classes)
    self.options = config.finetune
    self.refresh_steps = self.options.refresh_steps
    self.prior = PretrainStage(config, classes)
    self.gpt, self.order = self.prior.gpt, self.prior.order
    self.tokenizer = self.prior.tokenizer
    self.renderer = builders.make_renderer(config, classes)
    self.adversary = adversarial.of_stage(config, self.name, classes, config.generator.taps)
    self.captions = self.tap_captions() | {
      f"refined_k{prefix}": ["sample", "refined"] for prefix in (0, self.num_codes)
    }
    if self.options.memory == "none":
      self.draws_with, self.final_pictures = ("codes", "noise"), None
    self.tx = {
      "generator": optimizer.make(self.options.optimizer, self.steps, config.generator.width),
      "gpt": optimizer.make(self.options.gpt_optimizer, self.steps, config.gpt.width),
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
      generator = self.renderer.init_generator(
        key,
        decoder if self.options.from_decoder else None,
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
        "code_counts": restored["pretrain"]["variables"]["code_counts"],
      },
      frozen={
        "tokenizer": {name: restored["tokenizer"]["ema"][name] for name in ("encoder", "quantizer")}
      }
      | self.perceptual_weights(),
    )

  # -- One step ------------------------------------------------------------------------------------

  def step(self, state, batch, key, *, axis):
    index = sharding.example_index(len(batch["image"]), axis)
    images = self.prepare(batch, key, state.step, index)
    task = self._draw_task(state, images, batch["label"], key, index)
    codebook = state.frozen["tokenizer"]["quantizer"]

    # One forward of the generator serves both players: D steps first, then G meets the new D.
    (logits, states), pull_gpt = jax.vjp(
      lambda params: self.renderer.condition(params, task), state.params["gpt"]
    )
    if self.options.noise_candidates > 1:
      task = self._choose_noise(state, images, task, states, key, index)
    (image, taps), pull = jax.vjp(
      lambda params, states: self.renderer.render_task(params, codebook, task, states),
      state.params["generator"],
      states,
    )
    discriminator, discriminator_state, metrics = self.adversary.update(
      state.params["discriminator"],
      state.opt_state["discriminator"],
      self.adversary.repeat(images),
      self.adversary.show(image, taps),
      task["label"],
      key,
      index,
      state,
      axis,
    )
    draws = adversarial.make_draws(key, state.step, index)

    def loss_fn(image, taps, logits):
      return self._loss(state, discriminator, images, image, taps, logits, task, draws)

    (*of_image, of_logits), parts = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)(
      image, taps, logits
    )
    generator_grads, of_states = pull(tuple(of_image))
    of_gpt = gpt_gradient(self.options.gpt_trained, pull_gpt, of_logits, of_states)
    grads = {"generator": generator_grads, "gpt": of_gpt}
    grads, parts = sharding.pmean((grads, parts), axis)
    params, opt_state = {}, {"discriminator": discriminator_state}
    for name, tx in self.tx.items():
      params[name], opt_state[name] = optimizer.update(
        tx, grads[name], state.opt_state[name], state.params[name], state.rate
      )
    ema = update_ema(state.ema, params, self.options.ema_decay)
    parts |= {f"gradient_norm_{name}": optax.tree.norm(grads[name]) for name in self.tx}
    # Where codes are known they tell images apart, whatever the generator does.
    free = 1.0 - task["prefix"] / len(self.order)
    parts["variety"] = adversarial.variety(images, image, free, axis)
    return state.replace(
      step=state.step + 1,
      params=params | {"discriminator": discriminator},
      opt_state=opt_state,
      ema=ema,
    ), metrics | parts

  def _draw_task(self, state, images, labels, key, index):
    """See tasks.draw_task."""
    codes = self.tokenizer.encode(state.frozen["tokenizer"], images)
    bank = state.variables["bank"]
    return finetune_inputs.draw_task(
      self.options, bank, codes, labels, key, state.step, index, classes=self.classes
    )

  def _choose_noise(self, state, images, task, states, key, index):
    """See tasks.nearest_noise."""
    codebook = state.frozen["tokenizer"]["quantizer"]
    options = self.options

    def distance(noise):
      image, _ = self.renderer.render_task(
        state.params["generator"], codebook, task | {"noise": noise}, states
      )
      return pixels.distance(image, images, options.gradient_weight)

    shape = (options.noise_candidates, options.noise_dim)
    noise = rng.normal(rng.stream(key, "noise_candidates", state.step), index, shape)
    return finetune_inputs.nearest_noise(task, jnp.swapaxes(noise, 0, 1), distance)

  def _loss(self, state, discriminator, images, image, taps, logits, task, draws):
    """Everything that the generator and the GPT are trained on; (total, metrics)."""
    options = self.options
    share = task["prefix"] / len(self.order)
    # No code, no target: (k/N)^p is 0 at k = 0. Bank rows have none either.
    weight = share**options.reconstruction_power * (task["prefix"] > 0) * task["real"]
    known = self.renderer.known_pixels(task["prefix"])
    if options.reconstruct_all_steps:
      # Unseen inputs make the decoder draw one odd pattern in every patch; the mean image of what
      # is known is a better place to start from, and no place to stay.
      early = jnp.maximum(0.0, 1.0 - state.step / options.reconstruct_all_steps)
      weight = jnp.maximum(weight, early * task["real"])
      known = jnp.maximum(known, early)

    def distance(x):
      error = pixels.distance(x, images, options.gradient_weight, known)
      return jnp.mean(weight * error)

    parts = {"reconstruction": distance(image)}
    total = options.reconstruction_weight * parts["reconstruction"]
    if taps:
      parts["taps"] = sum(distance(tap) for tap in taps) / len(taps)
      total += options.tap_weight * options.reconstruction_weight * parts["taps"]
    if options.lpips_weight and "lpips" in state.frozen:
      parts["lpips"] = jnp.mean(weight * perceptual.lpips(state.frozen["lpips"], images, image))
      total += options.lpips_weight * parts["lpips"]
    real, fake = self.adversary.repeat(images), self.adversary.show(image, taps)
    against, class_loss, more = self.adversary.generator_loss(
      discriminator, real, fake, task["label"], draws
    )
    started = state.step >= options.reconstruct_warmup_steps
    total += jnp.where(started, 1.0, 0.0) * (
      options.adversarial_weight * against + options.class_weight * class_loss
    )
    nats = code_losses.next_code(logits, task["codes"][:, self.order])
    parts["next_code"] = jnp.mean(task["real"] * nats)
    total += options.next_code_weight * parts["next_code"]
    return total, parts | more | {"loss": total}

  # -- The bank ------------------------------------------------------------------------------------

  def refresh(self, state, key, *, axis):
    """Refills the bank with codes that the averaged GPT samples now, in chunks of one batch."""
    bank = finetune_inputs.fill_bank(
      self.gpt,
      state.ema["gpt"],
      rng.stream(key, "bank", state.step),
      rows=self.options.bank_rows,
      chunk=self.batch_size,
      options=base.decoding(self.config),
    )
    return state.replace(variables=state.variables | {"bank": bank})

  def guard(self, step, means):
    started = step > self.options.reconstruct_warmup_steps
    return self.adversary.guard(means) if started else None

  # -- Samples and figures -------------------------------------------------------------------------

  @property
  def num_codes(self):
    """N, the codes of an image."""
    return len(self.order)

  def drawing_params(self, results):
    """What sample needs, from the results of the stages up to this one."""
    return results["finetune"]["ema"] | {
      "quantizer": results["tokenizer"]["ema"]["quantizer"],
      "discriminator": results["finetune"]["params"]["discriminator"],
    }

  def sample(self, params, labels, keys, options, *, prefix, given=None):
    """See Renderer.sample; params as drawing_params gives them."""

    def score(image):
      verdict = self.adversary.verdict(params["discriminator"], image, labels)
      return refinement.realness(verdict, labels, self.classes)

    return self.renderer.sample(
      params, labels, keys, options, prefix=prefix, given=given, score=score
    )

  def current_params(self, state):
    """drawing_params of the step that training is at."""
    return state.ema | {
      "quantizer": state.frozen["tokenizer"]["quantizer"],
      "discriminator": state.params["discriminator"],
    }

  def prefixes(self):
    """The dial's settings that are shown while training: 0, N/4 and N."""
    return (0, len(self.order) // 4, len(self.order))

  def final_pictures(self, state, batch, key):
    """Samples above what becomes of them when their condition vectors are refined."""
    labels, rows = base.picture_labels(self.config.pictures, self.classes)
    labels = labels[: len(labels) // rows]
    options = base.sampling(self.config)
    ways = [
      dataclasses.replace(options, refinement=dataclasses.replace(options.refinement, steps=steps))
      for steps in (0, options.refinement.steps or REFINE_STEPS)
    ]
    return {
      f"refined_k{prefix}": jnp.stack(
        [self.draw_pictures(state, labels, key, way, prefix)[0] for way in ways]
      )
      for prefix in (0, self.num_codes)
    }

  def evaluators(self):
    return {
      "validation": base.Evaluator(self._sums, self._figures),
      "samples": self.samples_evaluator(),
    }

  def _sums(self, state, batch, key, *, axis):
    images = self.prepare(batch)
    labels = batch["label"]
    index = sharding.example_index(len(labels), axis)
    codes = self.tokenizer.encode(state.frozen["tokenizer"], images)
    figures = self.prior.prediction_figures(state, state.ema["gpt"], codes, labels)

    def render(prefix, name):
      noise = rng.normal(rng.stream(key, name, 0), index, (self.options.noise_dim,))
      task = {"codes": codes, "label": labels, "noise": noise}
      task["prefix"] = jnp.full(len(labels), prefix)
      codebook = state.frozen["tokenizer"]["quantizer"]
      return self.renderer.forward(state.ema, codebook, task)[0]

    decoded = render(len(self.order), "noise")
    figures |= self.reconstruction_figures(images, decoded)
    # Two noises on one real prefix: how much the noise is heard.
    first, second = (render(self.prefixes()[1], name) for name in ("noise", "other_noise"))
    figures["diversity_rms"] = jnp.sqrt(jnp.mean((first - second) ** 2, axis=(1, 2, 3)))
    if "lpips" in state.frozen:
      figures["diversity_lpips"] = perceptual.lpips(state.frozen["lpips"], first, second)
    none = render(0, "noise")
    figures |= self.verdict_figures(state, images, none, labels)
    return self.masked_sums(batch, figures)

  def _figures(self, sums):
    return self.with_grid_ratio(self.means(sums))
