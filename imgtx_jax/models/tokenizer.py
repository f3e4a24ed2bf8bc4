"""Encoder, Quantizer and a decoder, as one thing: images to codes and back."""

import dataclasses
from typing import Any

import jax

from imgtx_jax.models import encoder as transformers
from imgtx_jax.models import quantizer as quantizers
from imgtx_jax.models import vqgan
from imgtx_jax.models.generator import Generator


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Pure functions of params = {"encoder", "quantizer", decoder_name}.

  encode: images [B, H, W, 3] → latents [B, N, C], codes int [B, N] in raster order.
  decode: codes → images. render: vectors [B, N, C] → image, taps (see Generator).

  decoder_name: "generator" where the decoder is the Generator in its first role, whose weights the
  later roles take over by name; "decoder" where there is nothing to take over.
  """

  encoder: transformers.Encoder | vqgan.Encoder
  quantizer: quantizers.VectorQuantizer | quantizers.FiniteScalarQuantizer
  decoder: Generator | vqgan.Decoder
  decoder_name: str = "generator"

  def init(self, key, images) -> dict[str, Any]:
    """Parameters for images shaped like these [B, H, W, 3]."""
    keys = jax.random.split(key, 3)
    latents, encoder = self.encoder.init_with_output(keys[0], images)
    decoder = self.decoder.init(keys[1], latents)
    return {
      "encoder": encoder["params"],
      "quantizer": self.quantizer.init(keys[2]),
      self.decoder_name: decoder["params"],
    }

  def last_kernel(self, params):
    """The decoder's last kernel [3, 3, C, 3] in params, or its gradient in a tree of gradients."""
    decoder = params[self.decoder_name]
    return (decoder["head"]["rgb"] if "head" in decoder else decoder["conv_out"])["kernel"]

  def latents(self, params, images):
    """Images [B, H, W, 3] → latents [B, N, C], before quantisation."""
    return self.encoder.apply({"params": params["encoder"]}, images)

  def encode(self, params, images):
    """Images [B, H, W, 3] → codes int32 [B, N]."""
    return self.quantizer.quantize(params["quantizer"], self.latents(params, images)).codes

  def render(self, params, vectors):
    """Vectors [B, N, C] → image [B, H, W, 3] and taps."""
    return self.decoder.apply({"params": params[self.decoder_name]}, vectors)

  def decode(self, params, codes):
    """Codes int [B, N] → images [B, H, W, 3]."""
    return self.render(params, self.quantizer.dequantize(params["quantizer"], codes))[0]
