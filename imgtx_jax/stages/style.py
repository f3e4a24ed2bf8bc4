"""Stage "style": the generator as stylizer, and the style encoder.

Trains them on VGG16's content and style losses (StyTr2, arXiv:2105.14576), if asked on
reconstruction of an image in its own style and against a discriminator of style images.
Contents are the data's images; styles are a second stream, batch["style"].
"""

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.data import pipeline, sources, transforms
from imgtx_jax.distributed import collectives
from imgtx_jax.losses import pixels
from imgtx_jax.losses import style as losses
from imgtx_jax.metrics import image as image_metrics
from imgtx_jax.models import texture_synthesis
from imgtx_jax.models.style_encoder import mix
from imgtx_jax.pretrained import lpips_weights as vgg_weights
from imgtx_jax.stages import adversarial, base, builders
from imgtx_jax.training import optimizer
from imgtx_jax.training.train_state import TrainState

_LEAST_DETAIL = 0.4  # of a style's, and 1 / 0.4 times it the most, where it is changed
COLLAPSE_VARIETY = 0.05  # least deviation of the outputs from each other, over the contents'
_PICTURED = (4, 7)  # styles and contents of a picture


class StyleStage(base.Stage):
  """The stage "style"; see the module's docstring, and base.py for the contract.

  Players: "stylist" (generator and style encoder; see Stylist) and, with an adversary,
  "discriminator".
  """

  name = "style"
  sources = ("tokenizer",)
  companion_names = ("style",)

  def __init__(self, config, classes):
    super().__init__(config, classes)
    self.options = config.style
    self.stylist = builders.make_stylist(config)
    self.tx = optimizer.make(base.optimizer_options(config, self.options.optimizer), self.steps)
    self.adversary = None
    if self.options.adversarial_weight:
      self.adversary = adversarial.of_stage(config, self.name, classes)
    styles = min(_PICTURED[0], config.pictures)
    self.captions = {"styles": ["content", *["style"] * styles]}

  def companions(self):
    options, crop = self.options.data, self.config.data
    training, held_out = (
      sources.open_source(options.source, split=split, path=options.path, key="config.style.data")
      for split in ("train", "validation")
    )
    crops = (crop.crop, crop.min_scale, crop.max_scale)
    return {"style": pipeline.Companion(training, held_out, *crops)}

  def init(self, key, batch_shape, restored):
    tokenizer = restored["tokenizer"]["ema"]
    params = {"stylist": self.stylist.init(key, tokenizer["generator"])}
    opt_state = {"stylist": self.tx.init(params["stylist"])}
    ema = jax.tree.map(jnp.copy, params)
    if self.adversary:
      player, player_state = self.adversary.init(
        rng.stream(key, "init_adversary", 0), jnp.zeros((1, *batch_shape[1:]))
      )
      params["discriminator"], opt_state["discriminator"] = player, player_state
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=opt_state,
      ema=ema,
      variables={},
      frozen=self.frozen(restored),
    )

  def frozen(self, restored):
    tokenizer = restored["tokenizer"]["ema"]
    used = {name: tokenizer[name] for name in ("encoder", "quantizer")}
    return {"tokenizer": used, "vgg": vgg_weights.load()["vgg"]}

  def step(self, state, batch, key, *, axis):
    index = collectives.example_index(len(batch["image"]), axis)
    contents = self.prepare(batch, key, state.step, index)
    styles = self._prepare_styles(batch, key, state.step, index)
    strength = self._strength(key, state.step, index)
    # Anywhere in a large image: which windows of a style lie where could be learned by heart.
    origin = self.patch * jax.random.randint(rng.stream(key, "origin", state.step), (2,), 0, 2**16)

    def forward(players):
      return self._draw(players["stylist"], state.frozen, contents, styles, strength, origin)

    images, pull = jax.vjp(forward, {"stylist": state.params["stylist"]})
    shift = self._shift(key, state.step)
    targets = self._targets(state.frozen, contents, styles, strength, shift)
    started = state.step >= self.options.adversarial_start_steps
    weight = jnp.where(started, self.options.adversarial_weight, 0.0)

    def gradient(against):
      def loss_fn(images):
        total, parts = self._loss(state.frozen, images, styles, targets, shift)
        if against:
          adversarial_loss, _, more = against(images["styled"])
          total += weight * adversarial_loss
          parts |= {"generator_loss": more["generator_loss"]}
        return total, parts | {"loss": total}

      return jax.grad(loss_fn, has_aux=True)(images)

    state, metrics = adversarial.adversarial_step(
      state,
      gradient,
      lambda gradients: pull(gradients)[0],
      {"stylist": self.tx},
      adversary=self.adversary,
      real=styles,
      fake=(images["styled"], ()),
      labels=jnp.full(len(styles), self.classes, jnp.int32),
      ema_decay=self.options.ema_decay,
      key=key,
      index=index,
      axis=axis,
    )
    variety = adversarial.variety(contents, images["styled"], jnp.ones(len(contents)), axis)
    return state, metrics | {"variety": variety}

  def _prepare_styles(self, batch, key=None, step=None, index=None):
    """Returns the uint8 style images of a batch as float32 [B, H, W, 3]. With a key they are
    flipped, recoloured, and their detail is made stronger or weaker: few paintings stand for all
    styles."""
    images = transforms.normalize(batch["style"])
    if key is None:
      return images
    if self.flip:
      flips = rng.example_keys(rng.stream(key, "style_flip", step), index)
      images = transforms.random_flip(images, flips)
    colors = rng.example_keys(rng.stream(key, "style_colors", step), index)
    images = transforms.random_colors(images, colors, self.options.jitter_prob)
    sizes = texture_synthesis.num_bands(self.patch)
    draws = rng.uniform(rng.stream(key, "style_detail", step), index, (1 + sizes,))
    gains = _LEAST_DETAIL ** (1.0 - 2.0 * draws[:, 1:])
    changed = draws[:, :1] < self.options.jitter_prob
    return texture_synthesis.amplify(images, jnp.where(changed, gains, 1.0), self.patch)

  def _strength(self, key, step, index):
    """Draws strengths [B]: 1, and for a share of the examples anything below."""
    draws = rng.uniform(rng.stream(key, "strength", step), index, (2,))
    return jnp.where(draws[:, 0] < self.options.partial_prob, draws[:, 1], 1.0)

  def _shift(self, key, step):
    """Draws where VGG16's crops of this step start, int [2]: its strides of 16 pixels favour some
    places, and from the same places of a patch each time the stylizer would learn a grid."""
    return jax.random.randint(rng.stream(key, "shift", step), (2,), 0, self.options.shift + 1)

  def _features(self, frozen, images, shift=None):
    """Returns VGG16's features of images [B, H, W, 3]: for figures in float32; for losses, with a
    shift, in the compute dtype and of the images' crops that start at it."""
    if shift is None:
      return losses.features(frozen["vgg"], images)
    if self.options.shift:
      height, width = (side - self.options.shift for side in images.shape[1:3])
      sizes = (len(images), height, width, images.shape[3])
      images = jax.lax.dynamic_slice(images, (0, *shift, 0), sizes)
    return losses.features(frozen["vgg"], images, dtype=self.dtype)

  def _draw(self, params, frozen, contents, styles, strength, origin=(0, 0)):
    """Draws the images that the losses compare, each [B, H, W, 3]: "styled"; "moved", with the
    style's palette alone; and for the identity losses "own", the style images in their own
    style."""
    style, null = self.stylist.styles(params, styles), self.stylist.null(params, len(contents))
    partial = mix([null, style], [1.0 - strength, strength])
    found = self.stylist.stylize(params, frozen["tokenizer"], contents, partial, origin=origin)
    images = {"styled": found.image, "moved": found.moved}
    if self.options.identity_weight:
      images["own"] = self.stylist.render(params, frozen["tokenizer"], styles, style)
    return images

  def _targets(self, frozen, contents, styles, strength, shift=None):
    """Returns VGG16's features of contents and styles, and the style loss's target moments."""
    found = self._features(frozen, jnp.concatenate([contents, styles]), shift)
    content, style = (
      {name: x[part] for name, x in found.items()}
      for part in (slice(len(contents)), slice(len(contents), None))
    )
    moments = losses.blend(losses.moments(content), losses.moments(style), strength)
    return {"content": content, "style": style, "moments": moments}

  def _loss(self, frozen, images, styles, targets, shift):
    """Computes all but the adversarial part; (total, metrics)."""
    options = self.options
    found = self._features(frozen, images["styled"], shift)
    parts = {
      "content": losses.content(found, targets["content"]).mean(),
      "style": losses.style(losses.moments(found), targets["moments"]).mean(),
    }
    if "own" in images:
      parts["identity"] = pixels.distance(images["own"], styles, gradient_weight=1.0).mean()
    return sum(options[f"{name}_weight"] * value for name, value in parts.items()), parts

  def guard(self, step, means):
    if self.adversary and step > self.options.adversarial_start_steps:
      if reason := self.adversary.guard(means):
        return reason
    if means["variety"] < COLLAPSE_VARIETY:
      return (
        f"stylized images are all alike: they differ {means['variety']:.2g} times as much as the "
        f"contents, under {COLLAPSE_VARIETY:g}"
      )
    return None

  # -- Figures and pictures ------------------------------------------------------------------------

  def evaluators(self):
    return {"validation": base.Evaluator(self._sums, self._figures)}

  def _sums(self, state, batch, key, *, axis):
    contents, styles = self.prepare(batch), self._prepare_styles(batch)
    full = jnp.ones(len(contents))
    params = state.ema["stylist"]
    images = self._draw(params, state.frozen, contents, styles, full)
    if (own := images.get("own")) is None:
      style = self.stylist.styles(params, styles)
      own = self.stylist.render(params, state.frozen["tokenizer"], styles, style)
    targets = self._targets(state.frozen, contents, styles, full)
    found = self._features(state.frozen, images["styled"])
    of_content = losses.moments(targets["content"])
    of_moved = self._features(state.frozen, images["moved"])
    figures = {
      "content": losses.content(found, targets["content"]),
      "style": losses.style(losses.moments(found), targets["moments"]),
      "style_of_content": losses.style(of_content, targets["moments"]),
      "style_of_moved": losses.style(losses.moments(of_moved), targets["moments"]),
      "ssim": image_metrics.ssim(contents, images["styled"]),
      "own_psnr": image_metrics.psnr(styles, own),
    }
    figures |= self.grid_figures(contents, images["styled"])
    return self.masked_sums(batch, figures)

  def _figures(self, sums):
    """Returns figures; style_left is the style loss, relative to that of the content itself."""
    figures = self.with_grid_ratio(self.means(sums))
    return figures | {"style_left": figures["style"] / max(figures["style_of_content"], 1e-6)}

  def pictures(self, state, batch, key):
    """Returns a grid: the contents, and below them a row per style that begins with the style."""
    rows, columns = (min(len(batch["image"]), most) for most in _PICTURED)
    contents, styles = self.prepare(batch)[:columns], self._prepare_styles(batch)[:rows]
    params = state.ema["stylist"]
    drawn = self.stylist.render(
      params,
      state.frozen["tokenizer"],
      jnp.tile(contents, (rows, 1, 1, 1)),
      jax.tree.map(
        lambda part: jnp.repeat(part, columns, axis=0), self.stylist.styles(params, styles)
      ),
    )
    first = jnp.concatenate([jnp.ones_like(styles[:1]), styles])[:, None]
    drawn = jnp.concatenate([contents, drawn]).reshape(rows + 1, columns, *contents.shape[1:])
    return {"styles": jnp.concatenate([first, drawn], axis=1)}
