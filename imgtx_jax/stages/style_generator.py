"""The networks that render a content image in a style, for the stage "style" and
style_transfer/stylizer.py."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.models import color_transfer, texture_synthesis
from imgtx_jax.models.encoder import Encoder
from imgtx_jax.models.generator import Generator
from imgtx_jax.models.quantizer import VectorQuantizer
from imgtx_jax.models.style_encoder import StyleEncoder, statistics, unweighted
from imgtx_jax.stages.conditional_generator import copy_by_name


class Whole(NamedTuple):
  """Measures of whole images, with which parts of them are rendered alike.

  matrix [B, 3, 3] and offset [B, 3] map their colours to the style's; of the images in these
  colours come the moments [B, 4 C] of their latents and the strength of their detail, contrast
  [B, L].
  """

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
  """The networks of style transfer. Its methods are pure functions of params = {"generator",
  "style_encoder"}, which the style stage trains, and tokenizer = {"encoder", "quantizer"}, which it
  does not.

  A stylized image is the content in the style's palette plus a change that the generator draws from
  the latents of that content, the style's tokens, and the style's texture laid over the image. A
  mixture of a style with the null style applies both by the style's weight: the null style alone
  gives the content back.

  The generator is modulated by the style's modulation [B, S] and the moments of the content's
  latents [B, 4 C]: what a style changes depends on the content.
  """

  encoder: Encoder
  quantizer: VectorQuantizer
  generator: Generator
  style_encoder: StyleEncoder

  @property
  def multiple(self):
    """Returns the number that the sides of images must be multiples of."""
    return self.encoder.patch

  def init(self, key, decoder):
    """Returns initial params.

    decoder: the tokenizer's, whose weights the generator copies by name, except those of its head.
    """
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
    """Returns the Style [B] of images [B, H, W, 3] in [-1, 1]."""
    return self.style_encoder.apply({"params": params["style_encoder"]}, images)

  def null(self, params, batch):
    """Returns the learned style that leaves a content as it is: strength 0."""
    return self.style_encoder.apply({"params": params["style_encoder"]}, batch, method="null")

  def content(self, tokenizer, images, *, hard=False):
    """Encodes images [B, H, W, 3] as a grid of latents [B, N, C]; hard: of quantised ones."""
    latents = self.encoder.apply({"params": tokenizer["encoder"]}, images)
    if hard:
      codes = self.quantizer.quantize(tokenizer["quantizer"], latents).codes
      return self.quantizer.dequantize(tokenizer["quantizer"], codes)
    return self.quantizer.continuous(latents)

  def measure(self, tokenizer, images, style, *, hard=False, own=None):
    """Measures images [B, H, W, 3] for a Style; returns the Whole that stylize takes. own: their
    Palette, where the images are smaller copies and it is known from the full size."""
    return self._measured(tokenizer, images, style, hard, own)[0]

  def _measured(self, tokenizer, images, style, hard, own=None):
    """Returns (the Whole of images, what _move returns of them, their content grid)."""
    colors, _ = unweighted(style)
    matrix, offset = color_transfer.transfer_map(
      color_transfer.measure(images) if own is None else own, colors
    )
    moved = self._move(images, style, matrix, offset)
    content = self.content(tokenizer, moved[0], hard=hard)
    return Whole(matrix, offset, _moments(content), self._contrast(moved[0])), moved, content

  def contrast(self, images, style, whole):
    """Returns the contrast [B, L] of images [B, H, W, 3] in the colours of a Whole, which may be of
    smaller copies: the strength of detail depends on the size."""
    return self._contrast(self._move(images, style, whole.matrix, whole.offset)[0])

  def _move(self, images, style, matrix, offset):
    """Returns images in a Style's palette by the style's weight, and in its palette fully."""
    full = color_transfer.apply_map(images, matrix, offset)
    return images + style.weight[:, None, None, None] * (full - images), full

  def _contrast(self, moved):
    return texture_synthesis.band_contrast(texture_synthesis.detail_bands(moved, self.multiple))

  def stylize(self, params, tokenizer, images, style, *, hard=False, whole=None, origin=(0, 0)):
    """Renders content images [B, H, W, 3] in a Style [B]; returns Stylized.

    whole: what measure returns of the images that these are parts of, by default of these
    themselves. origin: int [2], where in those images these begin, multiples of `multiple`.
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
    """Returns the image of stylize alone."""
    return self.stylize(params, tokenizer, images, style, **options).image

  def _modulation(self, style, moments):
    return jnp.concatenate([style.modulation, moments], axis=-1)

  def shape(self, images):
    """Returns (h, w) of the grid of images [B, H, W, 3]."""
    return images.shape[1] // self.multiple, images.shape[2] // self.multiple


def _moments(content):
  """Returns the moments [B, 4 C] of a content grid [B, N, C], whose vectors of unit length are
  scaled to channels of unit variance."""
  return statistics(content * content.shape[-1] ** 0.5)
