"""The Tokenizer: an Encoder, a quantizer and a decoder, mapping images to codes and back."""

import dataclasses
from typing import Any

import jax

from imgtx_jax.models import encoder as transformers
from imgtx_jax.models import quantizer as quantizers
from imgtx_jax.models import vqgan
from imgtx_jax.models.generator import Generator


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Maps images to codes and back; pure functions of {"encoder", "quantizer", decoder_name}.

  decoder_name: "generator" if the decoder is a Generator, whose weights later stages copy by name;
  "decoder" for a convolutional one, which they do not copy.
  """

  encoder: transformers.Encoder | vqgan.Encoder
  quantizer: quantizers.VectorQuantizer
  decoder: Generator | vqgan.Decoder
  decoder_name: str = "generator"

  def init(self, key, images) -> dict[str, Any]:
    """Returns initial parameters for images of this shape [B, H, W, 3]."""
    keys = jax.random.split(key, 3)
    latents, encoder = self.encoder.init_with_output(keys[0], images)
    decoder = self.decoder.init(keys[1], latents)
    return {
      "encoder": encoder["params"],
      "quantizer": self.quantizer.init(keys[2]),
      self.decoder_name: decoder["params"],
    }

  def last_kernel(self, params):
    """Returns the decoder's last kernel [3, 3, C, 3] of params, or of a tree of gradients."""
    decoder = params[self.decoder_name]
    return (decoder["head"]["rgb"] if "head" in decoder else decoder["conv_out"])["kernel"]

  def latents(self, params, images):
    """Maps images [B, H, W, 3] to latents [B, N, C], before quantisation."""
    return self.encoder.apply({"params": params["encoder"]}, images)

  def encode(self, params, images):
    """Maps images [B, H, W, 3] to codes int32 [B, N] in raster order."""
    return self.quantizer.quantize(params["quantizer"], self.latents(params, images)).codes

  def render(self, params, vectors):
    """Maps vectors [B, N, C] to images [B, H, W, 3] and taps; see Generator."""
    return self.decoder.apply({"params": params[self.decoder_name]}, vectors)

  def decode(self, params, codes):
    """Maps codes int [B, N] to images [B, H, W, 3]."""
    return self.render(params, self.quantizer.dequantize(params["quantizer"], codes))[0]
