"""Images in the style of others, by a trained style stage: what the commands call.

stylizer = load_stylizer("runs/style")
style = mix([stylizer.null(1), stylizer.styles(paintings)], [0.3, 0.7])
images = stylizer.render(contents, style)
"""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.models.style_encoder import Style, broadcast_batch, mix
from imgtx_jax.stages import builders, style_generator
from imgtx_jax.training import workdir

__all__ = ["Style", "Stylizer", "load_stylizer", "mix"]


class Stylizer:
  """A trained style stage. Its functions are compiled once for every shape.

  multiple: the sides of images given to it must be multiples of this.
  """

  def __init__(self, networks: style_generator.Stylist, params, tokenizer):
    """params and tokenizer: the networks' weights."""
    self.multiple = networks.multiple
    self._params, self._tokenizer = jax.tree.map(jnp.asarray, (params, tokenizer))
    self._styles = jax.jit(networks.styles)
    self._null = jax.jit(networks.null, static_argnums=1)
    self._measure = jax.jit(networks.measure, static_argnames="hard")
    self._contrast = jax.jit(networks.contrast)
    self._render = jax.jit(networks.render, static_argnames="hard")

  @property
  def weights(self):
    """All arrays that decide its images, as a tree."""
    return {"stylist": self._params, "tokenizer": self._tokenizer}

  def styles(self, images) -> Style:
    """The styles of images [B, H, W, 3], float32 in [-1, 1]."""
    return self._styles(self._params, self._checked(images))

  def null(self, batch) -> Style:
    """The style under which content comes back as it is, `batch` times.

    Strength s of a style: mix([null, style], [1 - s, s]).
    """
    return self._null(self._params, batch)

  def measure(self, content, style, *, hard=False, own=None, parts=()):
    """What render takes from content images [B, H, W, 3] as a whole in a Style; a stylist.Whole.
    The tiles of an image agree with each other if render is given that of the image. Of a large one
    content may be a small copy, with own, the Palette of the image itself, and parts, its tiles
    [B, h, w, 3]: how strong detail is depends on the size."""
    content = self._checked(content)
    style = broadcast_batch(style, len(content))
    whole = self._measure(self._tokenizer, content, style, hard=hard, own=own)
    if found := [self._contrast(self._checked(part), style, whole) for part in parts]:
      whole = whole._replace(contrast=jnp.sqrt(jnp.mean(jnp.square(jnp.stack(found)), axis=0)))
    return whole

  def render(self, content, style, *, hard=False, whole=None, origin=(0, 0)):
    """Content images [B, H, W, 3] in [-1, 1] in their Style (batch B, or 1 for all of them) →
    images [B, H, W, 3], clipped to [-1, 1]. hard: the change is drawn from the content's codes, not
    its latents. whole: measure's, of the images that these are tiles of, which begin at the pixel
    `origin` (row, column) of those; by default their own."""
    content = self._checked(content)
    style, whole = (broadcast_batch(parts, len(content)) for parts in (style, whole))
    image = self._render(
      *(self._params, self._tokenizer, content, style),
      hard=hard,
      whole=whole,
      origin=np.array(origin, np.int32),
    )
    return jnp.clip(image, -1.0, 1.0)

  def _checked(self, images):
    height, width = np.shape(images)[1:3]
    if height % self.multiple or width % self.multiple or not height or not width:
      raise UserError(
        f"images of {height}×{width} pixels: both sides must be multiples of {self.multiple}; "
        "crop, pad or resize them"
      )
    return jnp.asarray(images, jnp.float32)


def load_stylizer(directory, checkpoint="last") -> Stylizer:
  """The Stylizer of a work directory's finished style stage (its averaged weights); UserError, in
  one line, where there is none. checkpoint: the stage's "last", or the "best" it kept."""
  config, _ = workdir.read(directory)
  needed = [task for task in workdir.stage_runs(config) if task.stage in ("tokenizer", "style")]
  if "style" not in config.stages:
    raise UserError(
      f"{directory} has no style stage, only {', '.join(config.stages)}; train one: "
      "python -m imgtx_jax.main --config configs/style_small.py --workdir DIR"
    )
  missing = [task for task in needed if not workdir.is_finished(directory, task)]
  if missing:
    raise UserError(
      f"{directory}: the {missing[0].stage} stage is not finished; run the command that trains it "
      "again, it goes on from its last checkpoint"
    )
  results = workdir.results(directory, needed, config.start_from, {"style": checkpoint})
  tokenizer = {name: results["tokenizer"]["ema"][name] for name in ("encoder", "quantizer")}
  return Stylizer(builders.make_stylist(config), results["style"]["ema"]["stylist"], tokenizer)
