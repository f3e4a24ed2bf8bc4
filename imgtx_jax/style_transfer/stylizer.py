"""The Stylizer: renders content images in the style of others, with a trained style stage.

stylizer = load_stylizer("runs/style")
style = style_encoder.mix([stylizer.null(1), stylizer.styles(paintings)], [0.3, 0.7])
images = stylizer.render(contents, style)
"""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.models.style_encoder import Style, broadcast_batch
from imgtx_jax.stages import builders, style_generator
from imgtx_jax.training import workdir


class Stylizer:
  """A trained style stage, whose functions are compiled once per shape.

  multiple: the sides of images must be multiples of it; else methods raise a UserError.
  """

  def __init__(self, networks: style_generator.Stylist, params, tokenizer):
    """Wraps networks with their weights `params` and `tokenizer`."""
    self.multiple = networks.multiple
    self._params, self._tokenizer = jax.tree.map(jnp.asarray, (params, tokenizer))
    self._styles = jax.jit(networks.styles)
    self._null = jax.jit(networks.null, static_argnums=1)
    self._measure = jax.jit(networks.measure, static_argnames="hard")
    self._contrast = jax.jit(networks.contrast)
    self._render = jax.jit(networks.render, static_argnames="hard")

  @property
  def weights(self):
    """Returns a tree of all weights."""
    return {"stylist": self._params, "tokenizer": self._tokenizer}

  def styles(self, images) -> Style:
    """Returns the Style [B] of images [B, H, W, 3], float32 in [-1, 1]."""
    return self._styles(self._params, self._checked(images))

  def null(self, batch) -> Style:
    """Returns the null style, which leaves the content as it is, `batch` times.

    A style at strength s is mix([null, style], [1 - s, s]).
    """
    return self._null(self._params, batch)

  def measure(self, content, style, *, hard=False, own=None, parts=()):
    """Measures whole content images, so that render treats their tiles alike.

    For a large image, content may be a smaller copy. `own` and `parts` then give what the copy
    lacks: colours are measured exactly, and contrast depends on the size.

    Args:
      content: [B, H, W, 3] in [-1, 1].
      style: Style [B or 1].
      hard: as in render.
      own: ColorStatistics of the image, if content is a copy.
      parts: tiles [B, h, w, 3] of the image, if content is a copy.

    Returns:
      style_generator.Whole.
    """
    content = self._checked(content)
    style = broadcast_batch(style, len(content))
    whole = self._measure(self._tokenizer, content, style, hard=hard, own=own)
    contrasts = [self._contrast(self._checked(part), style, whole) for part in parts]
    if contrasts:
      whole = whole._replace(contrast=jnp.sqrt(jnp.mean(jnp.square(jnp.stack(contrasts)), axis=0)))
    return whole

  def render(self, content, style, *, hard=False, whole=None, origin=(0, 0)):
    """Renders content images in a style.

    Args:
      content: [B, H, W, 3] in [-1, 1].
      style: Style [B or 1].
      hard: whether to predict the change from the content's codes instead of its latents.
      whole: from measure, if content is a tile of larger images.
      origin: (row, column) of the tile's first pixel in them.

    Returns:
      Images [B, H, W, 3], clipped to [-1, 1].
    """
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
  """Returns the Stylizer of a work directory's finished style stage, with its averaged weights.

  checkpoint: "last" or "best" of the stage. Raises UserError if there is no finished style stage.
  """
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
  results = workdir.results(directory, needed, config.stage_checkpoint, {"style": checkpoint})
  tokenizer = {name: results["tokenizer"]["ema"][name] for name in ("encoder", "quantizer")}
  return Stylizer(builders.make_stylist(config), results["style"]["ema"]["stylist"], tokenizer)
