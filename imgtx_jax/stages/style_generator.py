"""From a content image and a style to an image: the networks of the style stage, as it trains them
and imgtx_jax.stylizing uses them."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.models import color_transfer, texture_synthesis
from imgtx_jax.models.encoder import Encoder
from imgtx_jax.models.generator import Generator
from imgtx_jax.models.quantizer import FiniteScalarQuantizer, VectorQuantizer
from imgtx_jax.models.style_encoder import StyleEncoder, statistics, unweighted
from imgtx_jax.stages.conditional_generator import copy_by_name


class Whole(NamedTuple):
  """Of whole images, to render parts of them alike: the map of their colours to the style's, matrix
  [B, 3, 3] and offset [B, 3]; and after it the moments [B, 4 C] of their latents, and how strong
  their detail is, contrast [B, L]."""

  matrix: Any
  offset: Any
  moments: Any
  contrast: Any


class Stylized(NamedTuple):
  """Images [B, H, W, 3]. image: the content in the style; moved: the content with the style's
  palette."""

  image: Any
  moved: Any


@dataclasses.dataclass(frozen=True)
class Stylist:
  """Pure functions of params = {"generator", "style_encoder"}, which the style stage trains, and
  tokenizer = {"encoder", "quantizer"}, which it does not.

  An image in a style is the content with the style's palette and a change to it, which the
  generator makes from the latents of what it changes, the style, and the style's texture laid over
  the image. Of a style that is partly the null style as much is applied as its share says: under
  the null style the content comes back.

  The generator is modulated by the style's modulation [B, S] beside the moments of the content's
  latents [B, 4 C]: what a style makes of an image depends on what it is made from.
  """

  encoder: Encoder
  quantizer: VectorQuantizer | FiniteScalarQuantizer
  generator: Generator
  style_encoder: StyleEncoder

  @property
  def multiple(self):
    """The sides of images must be multiples of this."""
    return self.encoder.patch

  def init(self, key, decoder):
    """params; decoder: the tokenizer's, whose weights, but the head's, the generator takes over by
    name."""
    side = 2 * self.multiple
    images = jnp.zeros((1, side, side, 3))
    style, encoder = self.style_encoder.init_with_output(
      rng.stream(key, "init_style_encoder", 0), images
    )
    content = jnp.zeros((1, 4, self.encoder.code_dim))
    fresh = self.generator.init(
      rng.stream(key, "init_generator", 0),
      content,
      style.tokens,
      self._modulation(style, _moments(content)),
      edit_inputs=(images, images, style.texture.contrast),
    )["params"]
    trunk = {name: weights for name, weights in decoder.items() if name != "head"}
    return {"generator": copy_by_name(fresh, trunk), "style_encoder": encoder["params"]}

  def styles(self, params, images):
    """Images [B, H, W, 3] in [-1, 1] → Style."""
    return self.style_encoder.apply({"params": params["style_encoder"]}, images)

  def null(self, params, batch):
    """The learned style under which a content comes back as it is: strength 0."""
    return self.style_encoder.apply({"params": params["style_encoder"]}, batch, method="null")

  def content(self, tokenizer, images, *, hard=False):
    """Images [B, H, W, 3] → the grid [B, N, C] of their latents before quantisation; hard: after
    it, as their codes have them."""
    latents = self.encoder.apply({"params": tokenizer["encoder"]}, images)
    if hard:
      codes = self.quantizer.quantize(tokenizer["quantizer"], latents).codes
      return self.quantizer.dequantize(tokenizer["quantizer"], codes)
    return self.quantizer.continuous(latents)

  def measure(self, tokenizer, images, style, *, hard=False, own=None):
    """What stylize takes from images [B, H, W, 3] as a whole, for a Style: a Whole. own: their
    Palette, if it is known better: they may be smaller copies."""
    return self._measured(tokenizer, images, style, hard, own)[0]

  def _measured(self, tokenizer, images, style, hard, own=None):
    """(the Whole of images, _move's of them, their grid)."""
    colors, _ = unweighted(style)
    matrix, offset = color_transfer.transfer_map(
      color_transfer.measure(images) if own is None else own, colors
    )
    moved = self._move(images, style, matrix, offset)
    content = self.content(tokenizer, moved[0], hard=hard)
    return Whole(matrix, offset, _moments(content), self._contrast(moved[0])), moved, content

  def contrast(self, images, style, whole):
    """The contrast [B, L] that images [B, H, W, 3] have with the colours of a Whole, which may be
    of smaller copies: how strong detail is depends on the size."""
    return self._contrast(self._move(images, style, whole.matrix, whole.offset)[0])

  def _move(self, images, style, matrix, offset):
    """Images with the palette of a Style, and with that of the style it is a share of."""
    full = color_transfer.apply_map(images, matrix, offset)
    return images + style.weight[:, None, None, None] * (full - images), full

  def _contrast(self, moved):
    return texture_synthesis.band_contrast(texture_synthesis.detail_bands(moved, self.multiple))

  def stylize(self, params, tokenizer, images, style, *, hard=False, whole=None, origin=(0, 0)):
    """Content images [B, H, W, 3] in a Style [B] → Stylized.

    whole: measure's of the images that these are parts of; by default of these themselves. origin
    int [2]: where in those these begin, multiples of `multiple`.
    """
    if whole is None:
      whole, (moved, full), content = self._measured(tokenizer, images, style, hard)
    else:
      moved, full = self._move(images, style, whole.matrix, whole.offset)
      content = self.content(tokenizer, moved, hard=hard)
    _, detail = unweighted(style)
    # For the style's own colours: which windows lie where is the same at every strength.
    laid = texture_synthesis.synthesize(detail, full, self.multiple, jnp.asarray(origin, jnp.int32))
    change, _ = self.generator.apply(
      {"params": params["generator"]},
      content,
      style.tokens,
      self._modulation(style, whole.moments),
      shape=self.shape(images),
      edit_inputs=(moved, laid, texture_synthesis.contrast_gains(whole.contrast, detail.contrast)),
    )
    return Stylized(moved + style.weight[:, None, None, None] * change, moved)

  def render(self, params, tokenizer, images, style, **options):
    """The image of stylize alone."""
    return self.stylize(params, tokenizer, images, style, **options).image

  def _modulation(self, style, moments):
    return jnp.concatenate([style.modulation, moments], axis=-1)

  def shape(self, images):
    """(h, w) of the grid of images [B, H, W, 3]."""
    return images.shape[1] // self.multiple, images.shape[2] // self.multiple


def _moments(content):
  """[B, 4 C] of a content grid [B, N, C]. Its vectors are of unit length: here of unit channels."""
  return statistics(content * content.shape[-1] ** 0.5)
