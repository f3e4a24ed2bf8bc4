"""Whether a config can work: one line for the first value that cannot."""

import math

import jax

from imgtx_jax import rng
from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError, one_of
from imgtx_jax.losses import adversarial
from imgtx_jax.models import attention, transformer
from imgtx_jax.models.vqgan import GROUPS
from imgtx_jax.sampling import autoregressive
from imgtx_jax.sampling import options as sampling_options
from imgtx_jax.training import optimizer

# Options of every adversary: the least and the most.
_ADVERSARY = {
  "class_weight": (0, None),
  "updates": (1, None),
  "penalty_every": (1, None),
  "penalty_share": (1e-6, 1),
  "penalty_weight_end": (0, None),
  "penalty_anneal_share": (0, 1),
  "consistency_weight": (0, None),
  "level_sigma": (0, None),
  "collapse_margin": (0, None),
  "collapse_variety": (0, None),
}
_VGG16_SIDE = 16  # pixels, at least


def check(config, devices=None):
  """Raises UserError for the first value that cannot work; one line each. devices: how many there
  are, where it is not as many as jax finds here."""
  _check_numbers(config)
  for stage in config.stages:
    one_of("config.stages", stage, configs.STAGES)
  one_of("config.dtype", config.dtype, ("auto", "float32", "bfloat16"))
  one_of("config.parallel.mode", config.parallel.mode, ("pmap", "jit"))
  configs.sharding_rules(config)
  one_of("config.data.crop", config.data.crop, ("center", "random"))
  one_of("config.tokenizer_kind", config.tokenizer_kind, ("transformer", "vqgan"))
  one_of("config.quantizer.kind", config.quantizer.kind, ("vq", "fsq"))
  one_of("config.pretrain.cache_crops", config.pretrain.cache_crops, ("ten", "center"))
  one_of("config.sample.guidance", config.sample.guidance, autoregressive.GUIDANCE)
  one_of("config.guard", config.guard, ("retry", "stop", "off"))
  one_of("config.best_mode", config.best_mode, ("auto", "min", "max"))
  one_of("config.start_from", config.start_from, ("last", "best"))
  one_of("config.gpt.order", config.gpt.order, ("raster", "spread"))
  one_of("config.finetune.memory", config.finetune.memory, configs.MEMORIES)
  if not config.stages:
    raise UserError(f"config.stages is empty; name at least one of {', '.join(configs.STAGES)}")
  if config.rounds < 1:
    raise UserError(f"config.rounds={config.rounds} is under 1; set it to 1 or more")
  for key, patch in (("patch", config.patch), ("discriminator.patch", config.discriminator.patch)):
    if patch < 1 or config.data.image_size % patch:
      raise UserError(
        f"config.data.image_size={config.data.image_size} is not divisible by "
        f"config.{key}={patch}; choose a size that is a multiple of {max(patch, 1)}"
      )
  for key in ("encoder", "generator", "gpt", "discriminator", "style_encoder"):
    _check_network(key, config[key])
  if config.discriminator.overlap > config.discriminator.patch:
    raise UserError(
      f"config.discriminator.overlap={config.discriminator.overlap} is over "
      f"config.discriminator.patch={config.discriminator.patch}; lower it"
    )
  taps = config.generator.taps
  if list(taps) != sorted(set(taps)) or (
    taps and not 0 < min(taps) <= max(taps) < config.generator.layers
  ):
    raise UserError(
      f"config.generator.taps={tuple(taps)} must ascend between 1 and layers − 1 = "
      f"{config.generator.layers - 1}"
    )
  if config.tokenizer_kind == "vqgan":
    _check_vqgan(config)
  _check_stages(config, devices or jax.device_count())


def _check_numbers(config):
  """Raises UserError for a number that no key takes: NaN, infinity, less than 0."""
  for key, value in configs.flatten(config).items():
    for number in value if isinstance(value, list) else [value]:
      if isinstance(number, int | float) and not 0 <= number < math.inf:
        raise UserError(f"config.{key}={number} is no number that it can have: choose 0 or more")
  if config.seed > rng.MAX_SEED:
    raise UserError(f"config.seed={config.seed} is over {rng.MAX_SEED}: choose one of 64 bits")


def _check_network(key, options):
  """Raises UserError for the first value of a Transformer, config.KEY, that cannot work."""
  one_of(f"config.{key}.remat", options.remat, tuple(transformer.REMAT_POLICIES))
  one_of(f"config.{key}.implementation", options.implementation, ("xla", "cudnn"))
  one_of(f"config.{key}.attention", options.attention, attention.KINDS)
  if options.attention == "l2" and options.implementation != "xla":
    raise UserError(
      f"config.{key}.implementation={options.implementation!r} has no attention by distance; "
      f"set it to 'xla', or config.{key}.attention to 'dot'"
    )
  for count in ("layers", "unroll"):
    if options[count] < 1:
      value = options[count]
      raise UserError(f"config.{key}.{count}={value} is under 1; set it to 1 or more")
  _check_window(key, options)
  width, heads = options.width, options.heads
  if heads < 1 or width % (4 * heads):
    raise UserError(
      f"config.{key}.width={width} is not a multiple of 4·heads={4 * heads}, as two-dimensional "
      f"RoPE needs; change config.{key}.width or config.{key}.heads"
    )


def _check_window(key, options):
  window = options.window
  if window and key in ("gpt", "discriminator"):
    raise UserError(f"config.{key}.window={window}: the {key} sees all tokens; set it to 0")
  if window < 0 or window % 2:
    raise UserError(
      f"config.{key}.window={window} is no even number of tokens; choose 8, or 0 for no windows"
    )
  if window and options.attention != "dot":
    raise UserError(
      f"config.{key}.window={window} has no attention {options.attention!r}; set "
      f"config.{key}.attention to 'dot', or the window to 0"
    )


def _check_style(config):
  """Raises UserError for what the style stage cannot work with."""
  if config.tokenizer_kind != "transformer":
    raise UserError(
      f"config.tokenizer_kind={config.tokenizer_kind!r} has no decoder that the style stage could "
      "start from; set it to 'transformer', or leave style out of config.stages"
    )
  left = config.data.image_size - config.style.shift
  if left < _VGG16_SIDE:
    raise UserError(
      f"config.style.shift={config.style.shift} leaves {left} of config.data.image_size="
      f"{config.data.image_size} pixels, and VGG16 needs {_VGG16_SIDE}; make it smaller"
    )
  one_of("config.style.data.crop", config.style.data.crop, ("center", "random"))
  _check_scales("style.data", config.style.data)
  if config.style.data.source in ("images", "folder") and not config.style.data.path:
    raise UserError(
      "config.style.data.path is empty; name the folder of the style images, or several with "
      "commas: --config.style.data.path=DIR"
    )


def _check_scales(name, data):
  if not 0 < data.min_scale <= data.max_scale <= 1:
    raise UserError(
      f"config.{name}.min_scale={data.min_scale:g} and config.{name}.max_scale="
      f"{data.max_scale:g} must be above 0, at most 1, and in that order"
    )


def _check_stages(config, devices):
  for stage in config.stages:
    options = config[stage]
    for key in ("steps", "batch_size"):
      if options[key] < 1:
        raise UserError(f"config.{stage}.{key}={options[key]} is under 1; set it to 1 or more")
    if options.batch_size % devices:
      raise UserError(
        f"config.{stage}.batch_size={options.batch_size} is not divisible by the {devices} "
        f"devices; choose a multiple of {devices}"
      )
    parts = options.get("accumulate", 1)
    if parts < 1 or options.batch_size % (devices * parts):
      raise UserError(
        f"config.{stage}.accumulate={parts} does not divide config.{stage}.batch_size="
        f"{options.batch_size} on {devices} devices; choose a divisor of "
        f"{options.batch_size // devices}"
      )
    for key in [k for k in options if k.endswith("optimizer")]:
      one_of(f"config.{stage}.{key}.schedule", options[key].schedule, optimizer.SCHEDULES)
    if "adversary" in options:
      _check_adversary(f"config.{stage}.adversary", options.adversary, config.generator.taps)
  if "style" in config.stages:
    _check_style(config)
  _check_scales("data", config.data)
  _check_ranges(config)
  _check_measuring(config)
  _check_training_of_gpt(config)


def _check_adversary(key, options, taps):
  """Raises UserError for the first value of an adversary, at key, that cannot work."""
  schedule = options.optimizer.schedule
  one_of(f"{key}.optimizer.schedule", schedule, optimizer.SCHEDULES)
  one_of(f"{key}.loss", options.loss, tuple(adversarial.LOSSES))
  one_of(f"{key}.penalty", options.penalty, ("exact", "difference"))
  for kind in options.augment:
    one_of(f"{key}.augment", kind, ("color", "translation", "cutout"))
  if options.consistency_weight and not options.augment:
    raise UserError(
      f"{key}.consistency_weight={options.consistency_weight:g} "
      "compares images with and without augmentation, and adversary.augment is empty; name "
      "one there, or set the weight to 0"
    )
  if options.levels and not taps:
    raise UserError(
      f"{key}.levels=True shows the discriminator conditioned images, and "
      "config.generator.taps=() makes none; name a depth there, or set it to False"
    )


def _check_training_of_gpt(config):
  """Raises UserError for the first value of pretrain and finetune that do not fit together."""
  trained = config.finetune.gpt_trained
  if trained not in ("all", "adapter", "none") and not (
    1 <= configs.last_layers(trained) <= config.gpt.layers
  ):
    raise UserError(
      f"config.finetune.gpt_trained={trained!r} is not one of: all, adapter, none, or last:L with "
      f"L from 1 to the {config.gpt.layers} layers of the GPT"
    )
  permuted = config.pretrain.permute_steps + config.pretrain.permute_anneal_steps
  if permuted and not config.gpt.target_position:
    raise UserError(
      f"config.pretrain.permute_steps + permute_anneal_steps = {permuted} needs "
      "config.gpt.target_position, or no state knows which code it predicts; set it to True"
    )
  shares = config.finetune.prefix_none_share + config.finetune.prefix_full_share
  if not 0 <= shares <= 1:
    raise UserError(
      f"config.finetune.prefix_none_share + prefix_full_share = {shares:g} is outside 0 … 1; "
      "lower one of them"
    )


def _check_ranges(config):
  ranges = {
    "finetune.bank_rows": (1, None),
    "finetune.bank_share": (0, 1),
    "finetune.noise_candidates": (1, None),
    "finetune.null_label_share": (0, 1),
    "finetune.reconstruct_all_steps": (0, None),
    "finetune.reconstruct_warmup_steps": (0, None),
    "gan.null_label_share": (0, 1),
    "guard_lines": (1, None),
    "tokenizer.continuous_share": (0, 1),
    "style.tokens": (1, None),
    "style.channels": (1, None),
    "style.modulation_dim": (1, None),
    "style.jitter_share": (0, 1),
    "style.partial_share": (0, 1),
    "style.shift": (0, None),
    "gpt.class_dropout": (0, 1),
    "gpt.token_dropout": (0, 0.99),
    "gpt.residual_dropout": (0, 0.99),
    "gpt.ffn_dropout": (0, 0.99),
    "gpt.drop_path": (0, 0.99),
    "pictures": (1, None),
    "metrics.fd_images": (0, 10_000),  # their features are all in memory
    "evaluate_images": (1, None),
    "keep_checkpoints": (1, None),
    "keep_every_steps": (0, None),
  }
  ranges |= {f"sample.{key}": limits[:2] for key, limits in sampling_options.RANGES.items()}
  for stage in ("tokenizer", "finetune", "gan", "style"):
    ranges |= {f"{stage}.adversary.{key}": limits for key, limits in _ADVERSARY.items()}
  flat = configs.flatten(config)
  for key, (least, most) in ranges.items():
    if flat[key] < least or (most is not None and flat[key] > most):
      limit = f"{least:g} or more" if most is None else f"{least:g} … {most:g}"
      raise UserError(f"config.{key}={flat[key]:g} is out of range; choose {limit}")
  for key, least in (("quantizer.levels", 2), ("pretrain.cache_scales", 1)):
    if min(flat[key], default=0) < least:
      raise UserError(f"config.{key}={tuple(flat[key])} must hold numbers of {least} or more")


def _check_measuring(config):
  """Raises UserError for the first value of what is measured while training that cannot work."""
  images, size = config.metrics.fd_images, config.data.image_size
  if images == 1:
    raise UserError("config.metrics.fd_images=1 has no covariance; set it to 0 (off), or 2 or more")
  if images and size < _VGG16_SIDE:
    raise UserError(
      f"config.metrics.fd_images={images} needs images of {_VGG16_SIDE} pixels for VGG16, and "
      f"config.data.image_size={size}; set it to 0"
    )
  if config.start_from == "best" and not config.best_metric:
    raise UserError(
      "config.start_from='best' needs a figure to choose by, and config.best_metric is empty; name "
      "one there, such as validation/psnr"
    )


def _check_vqgan(config):
  """Raises UserError for the first value of config.vqgan that cannot work."""
  options = config.vqgan
  for key in ("z_channels", "encoder_blocks", "decoder_blocks"):
    if options[key] < 1:
      raise UserError(f"config.vqgan.{key}={options[key]} is under 1; set it to 1 or more")
  multipliers = tuple(options.multipliers)
  if not multipliers or min(multipliers) < 1:
    raise UserError(
      f"config.vqgan.multipliers={multipliers} must be one number of 1 or more for each level"
    )
  if options.channels < 1 or options.channels % GROUPS:
    raise UserError(
      f"config.vqgan.channels={options.channels} is no multiple of {GROUPS}, the groups of its "
      f"norms; choose {GROUPS}, {2 * GROUPS} or more"
    )
  patch = 2 ** (len(multipliers) - 1)
  if config.patch != patch:
    raise UserError(
      f"config.patch={config.patch} is not {patch}, the pixels a code of the {len(multipliers)} "
      f"levels in config.vqgan.multipliers; set it to {patch}, or change the levels"
    )
