"""Builds the networks from the config: the only place where their hyperparameters are unpacked."""

import jax.numpy as jnp

from imgtx_jax import option_fields
from imgtx_jax.config import defaults as configs
from imgtx_jax.models import layers, quantizer, vqgan
from imgtx_jax.models.code_predictor import CodePredictor
from imgtx_jax.models.discriminator import Discriminator
from imgtx_jax.models.encoder import Encoder
from imgtx_jax.models.generator import Adapter, Generator, Mapping
from imgtx_jax.models.gpt import GPT
from imgtx_jax.models.style_encoder import StyleEncoder
from imgtx_jax.models.tokenizer import Tokenizer
from imgtx_jax.models.transformer import BlockConfig
from imgtx_jax.stages.conditional_generator import ConditionalGenerator
from imgtx_jax.stages.style_generator import Stylist

WINDOWED = ("encoder", "generator", "style_encoder")  # networks that config.window is for


def block_config(config, name, **roles):
  """Returns the BlockConfig of config.NAME, a network; roles: fields that its stage sets."""
  options = config[name]
  more = dict(
    mlp_dim=options.mlp_dim or layers.default_mlp_dim(options.width),
    attention_kernel=config.attention_kernel,
    remat=config.remat,
    unroll=config.unroll,
    window=config.window if name in WINDOWED else 0,
  )
  return option_fields.read(BlockConfig, options, **more | roles)


def dtype(config):
  """Returns the compute dtype."""
  return jnp.dtype(configs.compute_dtype(config))


def make_quantizer(config):
  """Builds the quantizer of the tokenizer."""
  return quantizer.VectorQuantizer(**config.quantizer)


def make_tokenizer(config):
  """Builds the tokenizer that config.tokenizer_kind names: encoder, quantizer and decoder."""
  if config.tokenizer_kind == "vqgan":
    return _make_vqgan(config)
  return Tokenizer(
    encoder=make_encoder(config), quantizer=make_quantizer(config), decoder=make_generator(config)
  )


def make_encoder(config):
  """Builds the Transformer encoder of the tokenizer."""
  return Encoder(
    patch=config.patch,
    width=config.encoder.width,
    depth=config.encoder.depth,
    code_dim=config.quantizer.code_dim,
    block=block_config(config, "encoder"),
    dtype=dtype(config),
  )


def _make_vqgan(config):
  options = config.vqgan
  shared = dict(
    channels=options.channels,
    multipliers=tuple(options.multipliers),
    z_channels=options.z_channels,
    dtype=dtype(config),
  )
  return Tokenizer(
    encoder=vqgan.Encoder(
      blocks=options.encoder_blocks, code_dim=config.quantizer.code_dim, **shared
    ),
    quantizer=make_quantizer(config),
    decoder=vqgan.Decoder(blocks=options.decoder_blocks, **shared),
    decoder_name="decoder",
  )


def make_generator(config, *, memory=False, modulated=False, retouch_channels=0, **known):
  """Builds the generator in one of its roles; see BlockConfig and Generator."""
  return Generator(
    patch=config.patch,
    width=config.generator.width,
    depth=config.generator.depth,
    block=block_config(config, "generator", memory=memory, modulated=modulated),
    taps=tuple(config.generator.taps),
    head_channels=config.generator.head_channels,
    head_overlap=config.generator.head_overlap,
    retouch_channels=retouch_channels,
    dtype=dtype(config),
    **known,
  )


def make_gpt(config, classes):
  """Builds the GPT over the tokenizer's codes."""
  return GPT(
    codebook_size=config.quantizer.codebook_size,
    classes=classes,
    width=config.gpt.width,
    depth=config.gpt.depth,
    shape=configs.grid_shape(config),
    block=block_config(config, "gpt"),
    order=config.gpt.order,
    target_position=configs.predicts_places(config),
    dtype=dtype(config),
  )


def make_conditional_generator(config, gpt, codes):
  """Builds the ConditionalGenerator; gpt: the GPT, codes: the quantizer of its codes."""
  memory, depth = config.finetune.memory, config.finetune.predictor_depth
  predictor = CodePredictor(
    codebook_size=config.quantizer.codebook_size,
    classes=gpt.classes,
    width=config.generator.width,
    depth=depth,
    shape=gpt.shape,
    block=block_config(config, "generator"),
    dtype=dtype(config),
  )
  known = {"marks_guesses" if depth else "mask_token": True}
  return ConditionalGenerator(
    gpt=gpt,
    generator=make_generator(config, memory=memory != "none", modulated=True, **known),
    predictor=predictor if depth else None,
    memory=memory,
    mapping=Mapping(
      width=config.generator.modulation_dim, classes=gpt.classes, dtype=dtype(config)
    ),
    quantizer=codes,
    noise_dim=config.generator.noise_dim,
    adapter=Adapter(dtype=dtype(config)) if config.finetune.gpt_trained == "adapter" else None,
  )


def make_one_step(config, classes):
  """Builds the generator from noise and class alone and their mapping; returns them, and the (N, C)
  of the generator's grid."""
  generator = make_generator(config, modulated=True, mask_token=True)
  mapping = Mapping(width=config.generator.modulation_dim, classes=classes, dtype=dtype(config))
  return generator, mapping, (configs.num_codes(config), config.quantizer.code_dim)


def make_stylist(config):
  """Builds the stylizer: the generator, the tokenizer's encoder for contents and one for styles."""
  style_encoder = StyleEncoder(
    patch=config.patch,
    width=config.style_encoder.width,
    depth=config.style_encoder.depth,
    num_tokens=config.style_encoder.num_tokens,
    modulation_dim=config.generator.modulation_dim,
    block=block_config(config, "style_encoder"),
    dtype=dtype(config),
  )
  return Stylist(
    encoder=make_encoder(config),
    quantizer=make_quantizer(config),
    generator=make_generator(
      config, memory=True, modulated=True, retouch_channels=config.style.head_channels
    ),
    style_encoder=style_encoder,
  )


def make_discriminator(config, classes):
  """Builds the discriminator; every stage with an adversary trains its own."""
  return Discriminator(
    patch=config.discriminator.patch,
    width=config.discriminator.width,
    depth=config.discriminator.depth,
    classes=classes,
    block=block_config(config, "discriminator"),
    overlap=config.discriminator.overlap,
    dtype=dtype(config),
  )
