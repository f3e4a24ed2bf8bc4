"""Training against a discriminator: the step that all stages with an adversary share.

The discriminator may be shown the generator's conditioned images (taps) beside the last image:
concatenated along the channels, the earlier ones under more noise. The real side repeats the image
under the same noise (GAT, arXiv:2509.24935).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imgtx_jax import option_fields, rng
from imgtx_jax.distributed import collectives
from imgtx_jax.losses import adversarial
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.losses.adversarial import AdversarialOptions
from imgtx_jax.models.discriminator import Discriminator
from imgtx_jax.stages import base, builders
from imgtx_jax.training import optimizer
from imgtx_jax.training.train_state import update_ema

LEVEL_SIGMA = 0.5  # standard deviation of the noise on the first conditioned image
# Signs of a collapse.
COLLAPSE_MARGIN = 20.0  # D(x) − D(G) over which, with next to no loss, the discriminator has won
COLLAPSE_VARIETY = 0.01  # least deviation of generated images from each other, over the real ones'
SATURATED_LOSS = 1e-3  # below it a discriminator has nothing left to learn


@dataclasses.dataclass(frozen=True)
class Adversary:
  """A discriminator, its optimizer and its losses. A real and a fake image of a pair share a label.

  The discriminator judges images [B, H, W, 3 · (1 + levels)]: the image, then its conditioned
  images in the order of level_sigmas. steps: of its training. class_weight: of its class layer's
  loss on real images; the generator has its own.
  """

  discriminator: Discriminator
  tx: optax.GradientTransformation
  options: AdversarialOptions
  steps: int
  levels: int = 0
  class_weight: float = 0.0

  @property
  def level_sigmas(self):
    """Returns the standard deviations of the noise on conditioned images, falling with depth."""
    return tuple(LEVEL_SIGMA * (1 - i / self.levels) for i in range(self.levels))

  @property
  def anneal_steps(self):
    """Returns the steps over which the penalties' weight falls to its end; 0 if it is constant."""
    return round(self.options.penalty_anneal_fraction * self.steps)

  # -- Inputs and verdicts -------------------------------------------------------------------------

  def init(self, key, images):
    """Returns parameters and optimizer state for images shaped like these [B, H, W, 3]."""
    labels = jnp.zeros(images.shape[0], jnp.int32)
    params = self.discriminator.init(key, self.repeat(images), labels)["params"]
    return params, self.tx.init(params)

  def repeat(self, images):
    """Repeats images [B, H, W, 3] along the channels, once more for each level."""
    return jnp.tile(images, (1, 1, 1, 1 + len(self.level_sigmas)))

  def show(self, image, taps):
    """Concatenates a generated image [B, H, W, 3] with its conditioned images, one a level."""
    return jnp.concatenate([image, *taps], axis=-1) if self.level_sigmas else image

  def verdict(self, params, images, labels):
    """Returns the Verdict on images [B, H, W, 3], without noise and augmentation."""
    return self._apply(params, self.repeat(images), labels)

  def _apply(self, params, images, labels):
    return self.discriminator.apply({"params": params}, images, labels)

  def _present(self, images, draws):
    """Augments images, all levels alike, and adds the levels' noise, as the losses show them."""
    if not self.level_sigmas:
      return adversarial.augment(images, draws["augment"], self.options.augment)
    levels = jnp.split(images, 1 + len(self.level_sigmas), axis=-1)
    levels = [
      adversarial.augment(level, draws["augment"], self.options.augment) for level in levels
    ]
    shape = (*images.shape[1:3], 3 * len(self.level_sigmas))
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(draws["levels"])
    noise *= np.repeat(self.level_sigmas, 3).astype(np.float32)
    return jnp.concatenate([levels[0], jnp.concatenate(levels[1:], axis=-1) + noise], axis=-1)

  def _judge_pairs(self, params, real, fake, labels, draws):
    """Returns verdicts on real and fake images under the same augmentation, in one forward."""
    both = [self._present(x, draws) for x in (real, fake)]
    return *self._judge_both(params, both, labels), both

  def _judge_both(self, params, both, labels):
    verdict = self._apply(params, jnp.concatenate(both), jnp.concatenate([labels, labels]))
    half = len(labels)
    first = jax.tree.map(lambda a: a[:half], verdict)
    return first, jax.tree.map(lambda a: a[half:], verdict)

  # -- The discriminator's turn --------------------------------------------------------------------

  def discriminator_loss(self, params, real, fake, labels, draws, count=0):
    """Returns (loss, metrics) of the discriminator's step number `count`.

    real, fake: images [B, H, W, 3 · (1 + levels)], see the class. labels: int [B]. draws: from
    make_draws.
    """
    real_verdict, fake_verdict, both = self._judge_pairs(params, real, fake, labels, draws)
    loss = adversarial.LOSSES[self.options.loss](real_verdict.logit, fake_verdict.logit)[0].mean()
    classes = self.discriminator.classes
    class_loss = code_losses.class_cross_entropy(real_verdict.class_logits, labels, classes).mean()
    r1, r2 = self._lazy_penalties(params, both, labels, draws["noise"], count)
    total = loss + self.class_weight * class_loss + self.penalty_weight_at(count) * (r1 + r2)
    metrics = {
      "discriminator_loss": loss,
      "logit_margin": jnp.mean(real_verdict.logit - fake_verdict.logit),
      "class_loss_real": class_loss,
      "r1": r1,
      "r2": r2,
    }
    if self.options.consistency_weight:
      # Balanced consistency (arXiv:2002.04724): an augmented image is as real as it was before.
      plain = self._judge_both(params, (real, fake), labels)
      pairs = zip(plain, (real_verdict, fake_verdict), strict=True)
      consistency = sum(jnp.mean((a.logit - b.logit) ** 2) for a, b in pairs)
      total += self.options.consistency_weight * consistency
      metrics["consistency"] = consistency
    return total, metrics

  def penalty_weight_at(self, count):
    """Returns the weight of R1 and R2 at step `count`: half a cosine from penalty_weight to
    penalty_weight_end."""
    options = self.options
    if not self.anneal_steps:
      return options.penalty_weight
    progress = jnp.minimum(count / self.anneal_steps, 1.0)
    left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return options.penalty_weight_end + left * (options.penalty_weight - options.penalty_weight_end)

  def _lazy_penalties(self, params, both, labels, keys, count):
    """Returns R1 and R2, multiplied by penalty_every, in every penalty_every-th step, and 0 in the
    others: the same mean for less work (arXiv:1912.04958)."""
    zeros, every = (jnp.zeros(()), jnp.zeros(())), self.options.penalty_every
    if not (self.options.penalty_weight or (self.anneal_steps and self.options.penalty_weight_end)):
      return zeros

    def penalties(params, both):
      return self._penalties(params, both, labels, keys)

    if every == 1:
      return penalties(params, both)
    due = count % every == 0
    found = jax.lax.cond(due, penalties, lambda params, both: zeros, params, both)
    return tuple(every * x for x in found)

  def _penalties(self, params, both, labels, keys):
    """Returns R1 at the real and R2 at the generated images of penalty_fraction of the examples."""
    some = slice(None, None, max(1, round(1 / self.options.penalty_fraction)))
    # float32 whatever the compute dtype: the difference quotient needs the digits. It also means
    # XLA's attention, which alone has a second derivative.
    exact = self.discriminator.clone(dtype=jnp.float32)

    def score(x):
      return exact.apply({"params": params}, x, labels[some]).logit

    images = [x[some].astype(jnp.float32) for x in both]
    if self.options.penalty == "exact":
      return tuple(adversarial.gradient_penalty(score, x) for x in images)
    noise = jax.vmap(lambda k: jax.random.normal(k, images[0].shape[1:]))(keys[some])
    return tuple(
      adversarial.difference_penalty(score, x, noise, self.options.penalty_sigma) for x in images
    )

  def update(self, params, opt_state, real, fake, labels, key, index, state, axis):
    """Trains the discriminator for one step; returns params, opt_state and metrics.

    real, fake, labels: see discriminator_loss. key, index: see make_draws. state: the TrainState,
    for its step and rate. axis: see Stage.step.
    """
    fake = jax.lax.stop_gradient(fake)
    draws = make_draws(key, state.step, index)
    grads, metrics = jax.grad(self.discriminator_loss, has_aux=True)(
      params, real, fake, labels, draws, state.step
    )
    grads, metrics = collectives.pmean((grads, metrics), axis)
    params, opt_state = optimizer.update(self.tx, grads, opt_state, params, state.rate)
    return params, opt_state, metrics

  # -- The generator's turn ------------------------------------------------------------------------

  def generator_loss(self, params, real, fake, labels, draws):
    """Returns (adversarial loss, class loss, metrics) of the generator of the fake images."""
    # Two passes: of one over both, the real half would be differentiated for nothing.
    real_verdict, fake_verdict = (
      self._apply(params, self._present(x, draws), labels) for x in (real, fake)
    )
    loss = adversarial.LOSSES[self.options.loss](real_verdict.logit, fake_verdict.logit)[1].mean()
    classes = self.discriminator.classes
    class_loss = code_losses.class_cross_entropy(fake_verdict.class_logits, labels, classes).mean()
    return loss, class_loss, {"generator_loss": loss, "class_loss_fake": class_loss}

  # -- Collapse ------------------------------------------------------------------------------------

  def guard(self, means):
    """Returns why the means of metrics {name: value} over a logged window look like a collapse, or
    None."""
    margin, loss = means["logit_margin"], means["discriminator_loss"]
    if margin > COLLAPSE_MARGIN and loss < SATURATED_LOSS:
      return (
        f"the discriminator has won: its margin D(x) - D(G) of {margin:.3g} is over "
        f"{COLLAPSE_MARGIN:g}, its loss {loss:.2g}"
      )
    variety = means.get("variety", np.inf)
    if variety < COLLAPSE_VARIETY:
      return (
        f"generated images are all alike: they differ {variety:.2g} times as much as real ones, "
        f"under {COLLAPSE_VARIETY:g}"
      )
    return None


def variety(real, fake, weight, axis):
  """Returns how much fake images [B, H, W, C] differ from each other relative to real ones: the
  ratio of the standard deviations of their pixels over the batches of all devices; scalar.

  weight: [B], of the examples. The ratio is 1 where fewer than two examples count.
  """
  weight = weight / jnp.maximum(collectives.pmean(jnp.mean(weight), axis), 1e-6)
  weight = weight[:, None, None, None]

  def variance(images):
    mean = collectives.pmean(jnp.mean(weight * images, axis=0), axis)
    return collectives.pmean(jnp.mean(weight * (images - mean) ** 2), axis)

  return jnp.sqrt((variance(fake) + 1e-6) / (variance(real) + 1e-6))


def make_draws(key, step, index):
  """Returns the per-example keys of a step, for the discriminator and the generator; index: int
  [B], global, of the examples."""
  return {
    name: rng.example_keys(rng.stream(key, f"adversary_{name}", step), index)
    for name in ("augment", "noise", "levels")
  }


def adversarial_step(
  state, gradient, pull, tx, *, adversary, real, fake, labels, ema_decay, key, index, axis
):
  """Trains the discriminator, and then the networks that make images, on one batch.

  One forward pass of the networks serves both: the discriminator is trained on its images first,
  then the networks on the new discriminator's logits of the same images.

  Args:
    state: TrainState; params and opt_state hold a tree a player, ema one for each player in tx.
    gradient: against → (gradients of the networks' outputs, metrics). against(image, taps) →
      (adversarial loss, class loss, metrics), see Adversary.generator_loss; None without an
      adversary.
    pull: gradients of the networks' outputs → those of their parameters, {player: tree}.
    tx: {player: optimizer} of the networks.
    adversary: Adversary, or None: then real, fake and labels are not read.
    real: images [B, H, W, 3]. fake: (image [B, H, W, 3], conditioned images) of the networks.
    labels: int [B] of both.
    ema_decay: decay of the averages, which warms up (see update_ema).
    key, index: see make_draws. axis: see Stage.step.

  Returns the next TrainState and the metrics of all players.
  """
  params, opt_state = dict(state.params), dict(state.opt_state)
  against, metrics = None, {}
  if adversary:
    real = adversary.repeat(real)
    params["discriminator"], opt_state["discriminator"], metrics = adversary.update(
      *(params["discriminator"], opt_state["discriminator"]),
      *(real, adversary.show(*fake), labels, key, index, state, axis),
    )
    draws = make_draws(key, state.step, index)

    def against(image, taps=()):
      shown = adversary.show(image, taps)
      return adversary.generator_loss(params["discriminator"], real, shown, labels, draws)

  gradients, parts = gradient(against)
  grads, parts = collectives.pmean((pull(gradients), parts), axis)
  for name in tx:
    params[name], opt_state[name] = optimizer.update(
      tx[name], grads[name], opt_state[name], params[name], state.rate
    )
  ema = update_ema(state.ema, {name: params[name] for name in tx}, ema_decay, state.step)
  norms = {f"gradient_norm_{name}": optax.tree.norm(grads[name]) for name in tx}
  return state.replace(
    step=state.step + 1, params=params, opt_state=opt_state, ema=ema
  ), metrics | parts | norms


def of_stage(config, name, classes, taps=(), class_weight=0.0):
  """Returns the Adversary of the stage `name`: config.adversary under the stage's own block.

  taps: the depths of the conditioned images that it may be shown. class_weight: see Adversary.
  """
  own = config[name].get("adversary", {})
  options = option_fields.read(AdversarialOptions, config.adversary, own)
  steps = config[name].steps
  adam = base.optimizer_options(config, config.adversary.optimizer)
  return Adversary(
    discriminator=builders.make_discriminator(config, classes),
    tx=optimizer.make(adam, steps),
    options=options,
    steps=steps,
    levels=len(taps) if options.see_taps else 0,
    class_weight=class_weight,
  )
