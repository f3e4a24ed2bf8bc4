"""From a content image and a style to an image: the networks of the style stage, as it trains them
and imgtx_jax.stylizing uses them."""

import dataclasses

import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.models.encoder import Encoder
from imgtx_jax.models.generator import Generator
from imgtx_jax.models.quantizer import FiniteScalarQuantizer, VectorQuantizer
from imgtx_jax.models.style_encoder import StyleEncoder, statistics
from imgtx_jax.stages.renderer import copy_by_name


@dataclasses.dataclass(frozen=True)
class Stylist:
  """Pure functions of params = {"generator", "style_encoder"}, which the style stage trains, and
  tokenizer = {"encoder", "quantizer"}, which it does not.

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
    """params; decoder: the tokenizer's, whose weights the generator takes over by name."""
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
    )["params"]
    return {"generator": copy_by_name(fresh, decoder), "style_encoder": encoder["params"]}

  def styles(self, params, images):
    """Images [B, H, W, 3] in [-1, 1] → Style."""
    return self.style_encoder.apply({"params": params["style_encoder"]}, images)

  def null(self, params, batch):
    """The learned style under which a content comes back as it is."""
    return self.style_encoder.apply({"params": params["style_encoder"]}, batch, method="null")

  def content(self, tokenizer, images, *, hard=False):
    """Images [B, H, W, 3] → the grid [B, N, C] of their latents before quantisation; hard: after
    it, as their codes have them."""
    latents = self.encoder.apply({"params": tokenizer["encoder"]}, images)
    if hard:
      codes = self.quantizer.quantize(tokenizer["quantizer"], latents).codes
      return self.quantizer.dequantize(tokenizer["quantizer"], codes)
    return self.quantizer.continuous(latents)

  def draw(self, params, content, style, shape, moments=None):
    """A content grid [B, h·w, C] of shape (h, w) in a Style → images [B, H, W, 3].

    moments [B, 4 C]: of the image that the grid is a part of, by default the grid's own.
    """
    moments = _moments(content) if moments is None else moments
    image, _ = self.generator.apply(
      {"params": params["generator"]},
      content,
      style.tokens,
      self._modulation(style, moments),
      shape=shape,
    )
    return image

  def _modulation(self, style, moments):
    return jnp.concatenate([style.modulation, moments], axis=-1)

  def moments(self, tokenizer, images, *, hard=False):
    """The moments [B, 4 C] of the latents, or codes, of images [B, H, W, 3]."""
    return _moments(self.content(tokenizer, images, hard=hard))

  def render(self, params, tokenizer, images, style, *, hard=False, moments=None):
    """Content images [B, H, W, 3] in a Style → images [B, H, W, 3]; moments as in draw."""
    content = self.content(tokenizer, images, hard=hard)
    return self.draw(params, content, style, self.shape(images), moments)

  def shape(self, images):
    """(h, w) of the grid of images [B, H, W, 3]."""
    return images.shape[1] // self.multiple, images.shape[2] // self.multiple


def _moments(content):
  """[B, 4 C] of a content grid [B, N, C]. Its vectors are of unit length: here of unit channels."""
  return statistics(content * content.shape[-1] ** 0.5)
