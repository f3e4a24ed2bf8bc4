"""Builds the networks from the config: their hyperparameters are unpacked here, nowhere else."""

import jax.numpy as jnp

from imgtx_jax.config import defaults as configs
from imgtx_jax.models import layers, quantizer, vqgan
from imgtx_jax.models.discriminator import Discriminator
from imgtx_jax.models.encoder import Encoder
from imgtx_jax.models.generator import Adapter, Generator, Mapping
from imgtx_jax.models.gpt import GPT
from imgtx_jax.models.style_encoder import StyleEncoder
from imgtx_jax.models.tokenizer import Tokenizer
from imgtx_jax.stages.conditional_generator import ConditionalGenerator
from imgtx_jax.stages.style_generator import Stylist


def _trunk(options):
  return dict(
    heads=options.heads,
    hidden=options.hidden or layers.default_hidden(options.width),
    qk_norm=options.qk_norm,
    layer_scale=options.layer_scale,
    attention=options.attention,
    window=options.window,
    spectral_norm=options.spectral_norm,
    implementation=options.implementation,
    remat=options.remat,
    unroll=options.unroll,
  )


def dtype(config):
  """Returns the compute dtype."""
  return jnp.dtype(configs.compute_dtype(config))


def make_quantizer(config):
  """Builds the quantizer that config.quantizer.kind names."""
  options = config.quantizer
  if options.kind == "fsq":
    return quantizer.FiniteScalarQuantizer(tuple(options.levels))
  return quantizer.VectorQuantizer(
    codebook_size=options.codebook_size,
    code_dim=options.code_dim,
    commitment=options.commitment,
    entropy=options.entropy,
    revive_below=options.revive_below,
  )


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
    layers=config.encoder.layers,
    code_dim=make_quantizer(config).code_dim,
    trunk=_trunk(config.encoder),
    dtype=dtype(config),
  )


def _make_vqgan(config):
  codes, options = make_quantizer(config), config.vqgan
  shared = dict(
    channels=options.channels,
    multipliers=tuple(options.multipliers),
    z_channels=options.z_channels,
    dtype=dtype(config),
  )
  return Tokenizer(
    encoder=vqgan.Encoder(blocks=options.encoder_blocks, code_dim=codes.code_dim, **shared),
    quantizer=codes,
    decoder=vqgan.Decoder(blocks=options.decoder_blocks, **shared),
    decoder_name="decoder",
  )


def tokenizer_width(config):
  """Returns the width by which the tokenizer's learning rate may scale (optimizer.width_base)."""
  return config.vqgan.channels if config.tokenizer_kind == "vqgan" else config.generator.width


def make_generator(config, **roles):
  """Builds the generator; roles: which of memory, modulated and mask_token it has."""
  return Generator(
    patch=config.patch,
    width=config.generator.width,
    layers=config.generator.layers,
    trunk=_trunk(config.generator),
    taps=tuple(config.generator.taps),
    head_channels=config.generator.head_channels,
    head_overlap=config.generator.head_overlap,
    dtype=dtype(config),
    **roles,
  )


def make_gpt(config, classes):
  """Builds the GPT over the tokenizer's codes."""
  return GPT(
    codebook_size=make_quantizer(config).codebook_size,
    classes=classes,
    width=config.gpt.width,
    layers=config.gpt.layers,
    shape=configs.grid_shape(config),
    trunk=_trunk(config.gpt),
    order=config.gpt.order,
    target_position=config.gpt.target_position,
    token_dropout=config.gpt.token_dropout,
    residual_dropout=config.gpt.residual_dropout,
    ffn_dropout=config.gpt.ffn_dropout,
    drop_path=config.gpt.drop_path,
    dtype=dtype(config),
  )


def make_conditional_generator(config, gpt, codes):
  """Builds what renders the GPT's condition vectors; gpt and codes: the GPT, and the quantizer of
  its codes."""
  memory = config.finetune.memory
  return ConditionalGenerator(
    gpt=gpt,
    generator=make_generator(config, memory=memory != "none", modulated=True, mask_token=True),
    memory=memory,
    mapping=Mapping(width=config.finetune.modulation_dim, classes=gpt.classes, dtype=dtype(config)),
    quantizer=codes,
    noise_dim=config.finetune.noise_dim,
    adapter=Adapter(dtype=dtype(config)) if config.finetune.gpt_trained == "adapter" else None,
  )


def make_one_step(config, classes):
  """Builds the generator from noise and class alone and their mapping; returns them, and the (N, C)
  of the generator's grid."""
  generator = make_generator(config, modulated=True, mask_token=True)
  mapping = Mapping(width=config.gan.modulation_dim, classes=classes, dtype=dtype(config))
  return generator, mapping, (configs.num_codes(config), make_quantizer(config).code_dim)


def make_stylist(config):
  """Builds the stylizer: the generator, the tokenizer's encoder for contents and one for styles."""
  style_encoder = StyleEncoder(
    patch=config.patch,
    width=config.style_encoder.width,
    layers=config.style_encoder.layers,
    tokens=config.style.tokens,
    modulation_dim=config.style.modulation_dim,
    trunk=_trunk(config.style_encoder),
    dtype=dtype(config),
  )
  return Stylist(
    encoder=make_encoder(config),
    quantizer=make_quantizer(config),
    generator=make_generator(
      config, memory=True, modulated=True, retouch_channels=config.style.channels
    ),
    style_encoder=style_encoder,
  )


def make_discriminator(config, classes):
  """Builds the discriminator; every stage with an adversary trains its own."""
  return Discriminator(
    patch=config.discriminator.patch,
    width=config.discriminator.width,
    layers=config.discriminator.layers,
    classes=classes,
    trunk=_trunk(config.discriminator),
    overlap=config.discriminator.overlap,
    dtype=dtype(config),
  )
