"""The discriminator as a player, shared by the stages that train against one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imgtx_jax import optim, parallel, rng
from imgtx_jax.losses import adversarial
from imgtx_jax.losses import codes as code_losses
from imgtx_jax.models.discriminator import Discriminator


@dataclasses.dataclass(frozen=True)
class Adversary:
  """A discriminator, its optimizer and its losses. Pairs of real and fake share their label."""

  discriminator: Discriminator
  tx: optax.GradientTransformation
  loss: str
  penalty: str
  penalty_weight: float
  penalty_sigma: float
  penalty_stride: int
  augment: tuple[str, ...]
  class_weight: float

  def init(self, key, images):
    """Parameters and optimizer state for images shaped like these [B, H, W, C]."""
    labels = jnp.zeros(images.shape[0], jnp.int32)
    params = self.discriminator.init(key, images, labels)["params"]
    return params, self.tx.init(params)

  def verdict(self, params, images, labels):
    """What the discriminator says of images; see discriminator.Verdict."""
    return self.discriminator.apply({"params": params}, images, labels)

  def _judge_pairs(self, params, real, fake, labels, keys):
    """Verdicts on real and fake images under the same augmentation, in one forward."""
    both = [adversarial.augment(x, keys, self.augment) for x in (real, fake)]
    verdict = self.verdict(params, jnp.concatenate(both), jnp.concatenate([labels, labels]))
    half = len(real)
    first = jax.tree.map(lambda a: a[:half], verdict)
    second = jax.tree.map(lambda a: a[half:], verdict)
    return first, second, both

  def discriminator_loss(self, params, real, fake, labels, draws):
    """(loss, metrics) of the discriminator. draws: keys [B] named augment and noise."""
    real_verdict, fake_verdict, both = self._judge_pairs(
      params, real, fake, labels, draws["augment"]
    )
    loss = adversarial.LOSSES[self.loss](real_verdict.logit, fake_verdict.logit)[0].mean()
    classes = self.discriminator.classes
    class_loss = code_losses.class_cross_entropy(real_verdict.class_logits, labels, classes).mean()
    r1, r2 = self._penalties(params, both, labels, draws["noise"])
    total = loss + self.class_weight * class_loss + self.penalty_weight * (r1 + r2)
    return total, {
      "discriminator_loss": loss,
      "logit_margin": jnp.mean(real_verdict.logit - fake_verdict.logit),
      "class_loss_real": class_loss,
      "r1": r1,
      "r2": r2,
    }

  def _penalties(self, params, both, labels, keys):
    """R1 at the real and R2 at the generated images of every penalty_stride-th example."""
    if not self.penalty_weight:
      return jnp.zeros(()), jnp.zeros(())
    some = slice(None, None, self.penalty_stride)
    # float32 whatever the compute dtype: the difference quotient needs the digits. Plain XLA
    # attention: cuDNN's takes no float32 and has no second derivative.
    trunk = {**self.discriminator.trunk, "implementation": "xla"}
    exact = self.discriminator.clone(dtype=jnp.float32, trunk=trunk)

    def score(x):
      return exact.apply({"params": params}, x, labels[some]).logit

    images = [x[some].astype(jnp.float32) for x in both]
    if self.penalty == "exact":
      return tuple(adversarial.gradient_penalty(score, x) for x in images)
    noise = jax.vmap(lambda k: jax.random.normal(k, images[0].shape[1:]))(keys[some])
    return tuple(
      adversarial.difference_penalty(score, x, noise, self.penalty_sigma) for x in images
    )

  def update(self, params, opt_state, real, fake, labels, draws, axis):
    """One step of the discriminator; returns params, opt_state and metrics."""
    grads, metrics = jax.grad(self.discriminator_loss, has_aux=True)(
      params, real, jax.lax.stop_gradient(fake), labels, draws
    )
    grads, metrics = parallel.pmean((grads, metrics), axis)
    updates, opt_state = self.tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics

  def generator_loss(self, params, real, fake, labels, draws):
    """(adversarial loss, class loss, metrics) of who made the fake images."""
    real_verdict, fake_verdict, _ = self._judge_pairs(params, real, fake, labels, draws["augment"])
    loss = adversarial.LOSSES[self.loss](real_verdict.logit, fake_verdict.logit)[1].mean()
    classes = self.discriminator.classes
    class_loss = code_losses.class_cross_entropy(fake_verdict.class_logits, labels, classes).mean()
    return loss, class_loss, {"generator_loss": loss, "class_loss_fake": class_loss}


def make_draws(key, step, index):
  """The per-example keys of one discriminator step and of the generator step after it."""
  return {
    name: rng.example_keys(rng.stream(key, f"adversary_{name}", step), index)
    for name in ("augment", "noise")
  }


def make_adversary(options, discriminator, steps, class_weight) -> Any:
  """The player that options (config.STAGE.adversary) describe."""
  return Adversary(
    discriminator=discriminator,
    tx=optim.make(options.optimizer, steps, discriminator.width),
    loss=options.loss,
    penalty=options.penalty,
    penalty_weight=options.penalty_weight,
    penalty_sigma=options.penalty_sigma,
    penalty_stride=max(1, round(1 / options.penalty_share)),
    augment=tuple(options.augment),
    class_weight=class_weight,
  )
