"""Stage "gan": the generator from noise and class alone, against the discriminator, from scratch.

The baseline for what pre-training brings: fine-tuning at k = 0 without a tokenizer, a GPT and its
condition vectors. No code is known, so the grid holds mask tokens only. configs/gan_*.py hold
recipes after GAT (arXiv:2509.24935), R3GAN (arXiv:2501.05441) and ViTGAN (arXiv:2107.04589).
"""

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.distributed import collectives
from imgtx_jax.stages import adversarial, base, builders
from imgtx_jax.training import optimizer
from imgtx_jax.training.train_state import TrainState


class GanStage(base.GeneratingStage):
  """The stage "gan"; see the module's docstring, and base.py for the contract.

  Players: "generator" (generator and mapping) and "discriminator", an optimizer each.
  """

  name = "gan"
  sources = ()
  draws_with = ("noise",)
  num_codes = 0

  def __init__(self, config, classes):
    super().__init__(config, classes)
    self.options = config.gan
    self.generator, self.mapping, self.grid_shape = builders.make_one_step(config, classes)
    self.adversary = adversarial.of_stage(
      config, self.name, classes, config.generator.taps, class_weight=self.options.class_weight
    )
    # The generator's optimizer is the discriminator's, but for what it has of its own.
    own = base.optimizer_options(config, config.adversary.optimizer, self.options.optimizer)
    self.tx = optimizer.make(own, self.steps)
    self.noise_dim = config.generator.noise_dim
    self.captions = self.tap_captions()

  def init(self, key, batch_shape, restored):
    noise, label = jnp.zeros((1, self.noise_dim)), jnp.zeros(1, jnp.int32)
    mapping = self.mapping.init(rng.stream(key, "init_mapping", 0), noise, label)["params"]
    generator = self.generator.init(
      rng.stream(key, "init_generator", 0),
      jnp.zeros((1, *self.grid_shape)),
      None,
      jnp.zeros((1, self.mapping.width)),
    )["params"]
    player = {"generator": generator, "mapping": mapping}
    discriminator, discriminator_state = self.adversary.init(
      rng.stream(key, "init_discriminator", 0), jnp.zeros((1, *batch_shape[1:]))
    )
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params={"generator": player, "discriminator": discriminator},
      opt_state={"generator": self.tx.init(player), "discriminator": discriminator_state},
      ema={"generator": jax.tree.map(jnp.copy, player)},
      variables={},
      frozen=self.frozen(restored),
    )

  def render(self, params, noise, labels, w_scale=1.0):
    """Renders noise [B, Z] and labels int [B] as images [B, H, W, 3], with taps; see Generator."""
    modulation = self.mapping.modulation(params["mapping"], noise, labels, w_scale)
    grid = jnp.zeros((len(labels), *self.grid_shape))
    known = jnp.zeros(grid.shape[:2], bool)
    return self.generator.apply(
      {"params": params["generator"]}, grid, None, modulation, known=known
    )

  def step(self, state, batch, key, *, axis):
    index = collectives.example_index(len(batch["image"]), axis)
    images = self.prepare(batch, key, state.step, index)
    noise = rng.normal(rng.stream(key, "noise", state.step), index, (self.noise_dim,))
    drop = rng.uniform(rng.stream(key, "null_label", state.step), index)
    labels = jnp.where(drop < self.config.class_dropout, self.classes, batch["label"])

    def forward(players):
      image, taps = self.render(players["generator"], noise, labels)
      return image, [tap for tap, _ in taps]

    (image, taps), pull = jax.vjp(forward, {"generator": state.params["generator"]})

    def gradient(against):
      def loss_fn(image, taps):
        adversarial_loss, class_loss, parts = against(image, taps)
        total = adversarial_loss + self.options.class_weight * class_loss
        return total, parts | {"loss": total}

      return jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(image, taps)

    state, metrics = adversarial.adversarial_step(
      state,
      gradient,
      lambda gradients: pull(gradients)[0],
      {"generator": self.tx},
      adversary=self.adversary,
      real=images,
      fake=(image, taps),
      labels=labels,
      ema_decay=self.options.ema_decay,
      key=key,
      index=index,
      axis=axis,
    )
    variety = adversarial.variety(images, image, jnp.ones(len(image)), axis)
    return state, metrics | {"variety": variety}

  def guard(self, step, means):
    return self.adversary.guard(means)

  # -- Samples and figures -------------------------------------------------------------------------

  def drawing_params(self, results):
    """Returns the params that sample takes, from the results of this stage."""
    result = results["gan"]
    return result["ema"] | {"discriminator": result["params"]["discriminator"]}

  def sample(self, params, labels, keys, options, *, prefix=0, given=None):
    """Draws images of labels int [B] with keys [B]; an image depends on its own key.

    There are no codes: prefix is 0 and given None. Returns images [B, H, W, 3], codes int [B, 0],
    and taps.
    """
    if prefix or given is not None:
      raise ValueError("the gan stage draws without codes")
    noise = jax.vmap(lambda k: jax.random.normal(k, (self.noise_dim,)))(keys)
    image, taps = self.render(
      params["generator"], options.truncation * noise, labels, options.w_scale
    )
    return image, jnp.zeros((len(labels), 0), jnp.int32), taps

  def evaluators(self):
    return {
      "validation": base.Evaluator(self._sums, self.means),
      "samples": self.samples_evaluator(),
    }

  def _sums(self, state, batch, key, *, axis):
    images, labels = self.prepare(batch), batch["label"]
    index = collectives.example_index(len(labels), axis)

    def render(name):
      noise = rng.normal(rng.stream(key, name, 0), index, (self.noise_dim,))
      return self.render(state.ema["generator"], noise, labels)[0]

    # Two noises on one label: how much the noise is heard.
    first, second = render("noise"), render("other_noise")
    figures = self.verdict_figures(state, images, first, labels)
    figures["diversity_rms"] = jnp.sqrt(jnp.mean((first - second) ** 2, axis=(1, 2, 3)))
    return self.masked_sums(batch, figures)
