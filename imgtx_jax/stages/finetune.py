"""Stage "finetune": the generator renders the GPT's condition vectors, against a discriminator.

The generator starts as a copy of the tokenizer's decoder (afresh beside a convolutional tokenizer)
and gains cross-attention to the GPT's hidden states, a modulation by noise and class, and a mask
token for codes beyond the prefix k.
The discriminator's gradient reaches the GPT through the hidden states it attends to, never through
sampling. Relativistic loss with R1 and R2 (R3GAN arXiv:2501.05441, GAT arXiv:2509.24935), on real
codes and on codes that the GPT sampled (RobusTok, arXiv:2509.12474).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from imgtx_jax import decode, optim, parallel, refine, rng
from imgtx_jax.losses import codes as code_losses
from imgtx_jax.losses import perceptual, pixels
from imgtx_jax.stages import adversary, generating, networks, stage
from imgtx_jax.stages.pretrain import PretrainStage
from imgtx_jax.state import TrainState, update_ema

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
    self.renderer = networks.make_renderer(config, classes)
    self.adversary = adversary.make_adversary(
      self.options.adversary,
      networks.make_discriminator(config, classes),
      self.steps,
      class_weight=self.options.class_weight,
    )
    self.captions = self.tap_captions() | {
      f"refined_k{prefix}": ["sample", "refined"] for prefix in (0, self.num_codes)
    }
    if self.options.memory == "none":
      self.draws_with, self.final_pictures = ("codes", "noise"), None
    self.tx = {
      "generator": optim.make(self.options.optimizer, self.steps, config.generator.width),
      "gpt": optim.make(self.options.gpt_optimizer, self.steps, config.gpt.width),
    }

  # -- The state -----------------------------------------------------------------------------------

  def init(self, key, batch_shape, restored):
    images = jnp.zeros((1, *batch_shape[1:]))
    if "finetune" in restored:  # a later round goes on with the players of the last
      before = restored["finetune"]["params"]
      generator, discriminator = before["generator"], before["discriminator"]
      discriminator_state = self.adversary.tx.init(discriminator)
    else:
      generator = self.renderer.init_generator(
        key,
        restored["tokenizer"]["ema"].get("generator"),  # a convolutional tokenizer has none
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
    index = parallel.example_index(len(batch["image"]), axis)
    images = self.prepare(batch, key, state.step, index)
    task = self._draw_task(state, images, batch["label"], key, index)
    params = {name: state.params[name] for name in self.tx}
    draws = adversary.make_draws(key, state.step, index)

    def forward(params):
      return self.renderer.forward(
        params,
        state.frozen["tokenizer"]["quantizer"],
        task,
        gpt_gradient=self.options.gpt_gradient,
      )

    # One forward of the generator serves both players: D steps first, then G meets the new D.
    (image, taps, logits), pull = jax.vjp(forward, params)
    discriminator, discriminator_state, metrics = self.adversary.update(
      state.params["discriminator"],
      state.opt_state["discriminator"],
      images,
      image,
      task["label"],
      draws,
      axis,
    )

    def loss_fn(image, taps, logits):
      return self._loss(state, discriminator, images, image, taps, logits, task, draws)

    cotangents, parts = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)(image, taps, logits)
    (grads,) = pull(cotangents)
    grads, parts = parallel.pmean((grads, parts), axis)
    params, opt_state = dict(params), {"discriminator": discriminator_state}
    for name, tx in self.tx.items():
      updates, opt_state[name] = tx.update(grads[name], state.opt_state[name], params[name])
      params[name] = optax.apply_updates(params[name], updates)
    ema = update_ema(state.ema, params, self.options.ema_decay)
    norms = {f"gradient_norm_{name}": optax.tree.norm(grads[name]) for name in self.tx}
    return state.replace(
      step=state.step + 1,
      params=params | {"discriminator": discriminator},
      opt_state=opt_state,
      ema=ema,
    ), metrics | parts | norms

  def _draw_task(self, state, images, labels, key, index):
    """What each example is asked to render: its codes, label, prefix k and noise.

    real is 1 where the codes are the image's own, 0 where the GPT sampled them for that label.
    """

    def draw(name, shape=()):
      return rng.uniform(rng.stream(key, name, state.step), index, shape)

    codes = self.tokenizer.encode(state.frozen["tokenizer"], images)
    own = draw("bank_share") < self.options.bank_share
    row = (draw("bank_row") * self.options.bank_rows).astype(jnp.int32)
    codes = jnp.where(own[:, None], state.variables["bank"][labels, row], codes)
    total = len(self.order)
    which, size = draw("prefix_kind"), draw("prefix_size")
    prefix = jnp.round(total * size**2).astype(jnp.int32)
    none, full = self.options.prefix_none_share, self.options.prefix_full_share
    prefix = jnp.where(which < none, 0, jnp.where(which > 1.0 - full, total, prefix))
    unlabelled = draw("null_label") < self.options.null_label_share
    return {
      "codes": codes,
      "label": jnp.where(unlabelled, self.classes, labels),
      "prefix": prefix,
      "noise": rng.normal(rng.stream(key, "noise", state.step), index, (self.options.noise_dim,)),
      "real": 1.0 - own.astype(jnp.float32),
    }

  def _loss(self, state, discriminator, images, image, taps, logits, task, draws):
    """Everything that the generator and the GPT are trained on; (total, metrics)."""
    options = self.options
    share = task["prefix"] / len(self.order)
    # No code, no target: (k/N)^p is 0 at k = 0. Bank rows have none either.
    weight = share**options.reconstruction_power * (task["prefix"] > 0) * task["real"]
    known = self.renderer.known_pixels(task["prefix"])

    def distance(x):
      error = pixels.squared_error(x, images, known)
      if options.gradient_weight:
        error += options.gradient_weight * pixels.gradient_difference(x, images, known)
      return jnp.mean(weight * error)

    parts = {"reconstruction": distance(image)}
    total = options.reconstruction_weight * parts["reconstruction"]
    if taps:
      parts["taps"] = sum(distance(tap) for tap in taps) / len(taps)
      total += options.tap_weight * options.reconstruction_weight * parts["taps"]
    if options.lpips_weight and "lpips" in state.frozen:
      parts["lpips"] = jnp.mean(weight * perceptual.lpips(state.frozen["lpips"], images, image))
      total += options.lpips_weight * parts["lpips"]
    against, class_loss, more = self.adversary.generator_loss(
      discriminator, images, image, task["label"], draws
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
    rows = self.options.bank_rows
    total = self.classes * rows
    chunk = min(self.batch_size, total)
    chunks = -(-total // chunk)
    index = jnp.arange(chunks * chunk).reshape(chunks, chunk)
    key = rng.stream(key, "bank", state.step)
    options = stage.decoding(self.config)

    def fill(index):
      labels = (index // rows) % self.classes
      keys = rng.example_keys(key, index)
      codes, _ = decode.sample_codes(
        self.gpt, state.ema["gpt"], labels, keys, steps=len(self.order), options=options
      )
      return decode.to_raster(codes, self.order, len(self.order))[0]

    bank = jax.lax.map(fill, index).reshape(chunks * chunk, -1)[:total]
    bank = bank.reshape(self.classes, rows, -1)
    return state.replace(variables=state.variables | {"bank": bank})

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
      return refine.realness(verdict, labels, self.classes)

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
    labels, rows = stage.picture_labels(self.config.pictures, self.classes)
    labels = labels[: len(labels) // rows]
    options = stage.sampling(self.config)
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
      "validation": stage.Evaluator(self._sums, self._figures),
      "samples": self.samples_evaluator(),
    }

  def _sums(self, state, batch, key, *, axis):
    images = self.prepare(batch)
    labels = batch["label"]
    index = parallel.example_index(len(labels), axis)
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
