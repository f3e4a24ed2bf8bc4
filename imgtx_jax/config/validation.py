"""Checks a config before anything is built: one line for the first value that cannot work."""

import jax

from imgtx_jax import rng
from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError, one_of
from imgtx_jax.io.image_files import MAX_SIDE
from imgtx_jax.losses.adversarial import AUGMENTATIONS, LOSSES, PENALTIES, AdversarialOptions
from imgtx_jax.models import attention, attention_kernels, transformer
from imgtx_jax.models.vqgan import GROUPS
from imgtx_jax.option_fields import ranges
from imgtx_jax.sampling.options import GUIDANCE, SamplingOptions
from imgtx_jax.training import optimizer

_VGG16_SIDE = 16  # pixels, at least
_LARGEST_INT = 2**31 - 1  # steps and codes are int32
_LARGEST_FLOAT = 3.4e38  # float32's; more would be infinity


def check(config, devices=None):
  """Raises UserError for the first value of a config that cannot work.

  devices: number of devices of the run; by default those that jax finds here.
  """
  _check_numbers(config)
  for stage in config.stages:
    one_of("config.stages", stage, configs.STAGES)
  one_of("config.dtype", config.dtype, ("auto", "float32", "bfloat16"))
  one_of("config.remat", config.remat, tuple(transformer.REMAT_POLICIES))
  one_of("config.attention_kernel", config.attention_kernel, attention_kernels.KERNELS)
  one_of("config.parallel.mode", config.parallel.mode, ("pmap", "jit"))
  configs.sharding_rules(config)
  one_of("config.data.crop", config.data.crop, ("center", "random"))
  one_of("config.tokenizer_kind", config.tokenizer_kind, ("transformer", "vqgan"))
  one_of("config.pretrain.cache_crops", config.pretrain.cache_crops, ("ten", "center"))
  one_of("config.sample.guidance", config.sample.guidance, GUIDANCE)
  one_of("config.guard", config.guard, ("retry", "stop", "off"))
  one_of("config.best_mode", config.best_mode, ("auto", "min", "max"))
  one_of("config.stage_checkpoint", config.stage_checkpoint, ("last", "best"))
  one_of("config.gpt.order", config.gpt.order, ("raster", "spread"))
  one_of("config.finetune.memory", config.finetune.memory, configs.MEMORIES)
  if not config.stages:
    raise UserError(f"config.stages is empty; name at least one of {', '.join(configs.STAGES)}")
  if config.window < 0 or config.window % 2:
    raise UserError(
      f"config.window={config.window} is no even number of tokens; choose 8, or 0 for no windows"
    )
  for key, patch in (("patch", config.patch), ("discriminator.patch", config.discriminator.patch)):
    if patch < 1 or config.data.image_size % patch:
      raise UserError(
        f"config.data.image_size={config.data.image_size} is not divisible by "
        f"config.{key}={patch}; choose a size that is a multiple of {max(patch, 1)}"
      )
  for key in ("encoder", "generator", "gpt", "discriminator", "style_encoder"):
    _check_network(key, config[key])
    _check_attention_kernel(config, key)
  if config.discriminator.overlap > config.discriminator.patch:
    raise UserError(
      f"config.discriminator.overlap={config.discriminator.overlap} is over "
      f"config.discriminator.patch={config.discriminator.patch}; lower it"
    )
  taps = config.generator.taps
  if list(taps) != sorted(set(taps)) or (
    taps and not 0 < min(taps) <= max(taps) < config.generator.depth
  ):
    raise UserError(
      f"config.generator.taps={tuple(taps)} must ascend between 1 and depth − 1 = "
      f"{config.generator.depth - 1}"
    )
  if config.tokenizer_kind == "vqgan":
    _check_vqgan(config)
  _check_stages(config, devices or jax.device_count())


def _check_numbers(config):
  """Raises UserError for a number that its key cannot have: NaN, negative, or too large."""
  if config.seed > rng.MAX_SEED:
    raise UserError(f"config.seed={config.seed} is over {rng.MAX_SEED}: choose one of 64 bits")
  for key, value in configs.flatten(config).items():
    for number in value if isinstance(value, list) else [value]:
      if isinstance(number, int | float) and not 0 <= number <= _largest(key, number):
        limit = "0 or more" if number < 0 else f"0 … {_largest(key, number):.7g}"
        raise UserError(f"config.{key}={number} is no number that it can have: choose {limit}")


def _largest(key, number):
  """Returns the largest value of a number's key: probabilities end at 1, others with their type."""
  leaf = key.split(".")[-1]
  if leaf.endswith(("_prob", "_fraction", "ema_decay")):
    return 1
  if leaf in ("beta1", "beta2"):
    return 1 - 1e-6  # at 1 the averages would be divided by 0
  if key == "seed":
    return rng.MAX_SEED
  return _LARGEST_INT if isinstance(number, int) else _LARGEST_FLOAT


def _check_network(key, options):
  """Raises UserError for the first value of a Transformer, config.KEY, that cannot work."""
  one_of(f"config.{key}.attention", options.get("attention", "dot"), attention.KINDS)
  if options.depth < 1:
    raise UserError(f"config.{key}.depth={options.depth} is under 1; set it to 1 or more")
  width, heads = options.width, options.num_heads
  if heads < 1 or width % (4 * heads):
    raise UserError(
      f"config.{key}.width={width} is not a multiple of 4·num_heads={4 * heads}, as "
      f"two-dimensional RoPE needs; change config.{key}.width or config.{key}.num_heads"
    )


def _check_attention_kernel(config, key):
  """Raises UserError if the network config.KEY cannot use the kernel that is asked for."""
  kernel, width = config.attention_kernel, config[key].width // config[key].num_heads
  takes = {"cudnn": attention_kernels.cudnn_takes, "pallas": attention_kernels.pallas_takes}
  if kernel not in takes:
    return
  if config.dtype == "float32":
    raise UserError(
      f"config.attention_kernel={kernel!r} needs config.dtype='bfloat16', not 'float32'; set it to "
      "'auto' or 'xla'"
    )
  if not takes[kernel](width):
    raise UserError(
      f"config.attention_kernel={kernel!r} has no heads of width config.{key}.width / num_heads = "
      f"{width}, only multiples of 8 up to 128; set it to 'auto' or 'xla', or change config.{key}"
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
  if config.style.data.source in ("images", "folder") and not config.style.data.path:
    raise UserError(
      "config.style.data.path is empty; name the folder of the style images, or several with "
      "commas: --config.style.data.path=DIR"
    )


def _check_scales(data):
  if not 0 < data.min_scale <= data.max_scale <= 1:
    raise UserError(
      f"config.data.min_scale={data.min_scale:g} and config.data.max_scale={data.max_scale:g} must "
      "be above 0, at most 1, and in that order"
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
    parts = options.get("grad_accum_steps", 1)
    if parts < 1 or options.batch_size % (devices * parts):
      raise UserError(
        f"config.{stage}.grad_accum_steps={parts} does not divide config.{stage}.batch_size="
        f"{options.batch_size} on {devices} devices; choose a divisor of "
        f"{options.batch_size // devices}"
      )
    for key in [k for k in options if k.endswith("optimizer")]:
      one_of(f"config.{stage}.{key}.schedule", options[key].schedule, optimizer.SCHEDULES)
  if "style" in config.stages:
    _check_style(config)
  _check_scales(config.data)
  _check_adversary(config.adversary, config.generator.taps)
  one_of("config.tokenizer.adversary.loss", config.tokenizer.adversary.loss, tuple(LOSSES))
  _check_ranges(config)
  _check_measuring(config)
  _check_training_of_gpt(config)


def _check_adversary(options, taps):
  """Raises UserError for the first value of config.adversary that cannot work."""
  schedule = options.optimizer.schedule
  one_of("config.adversary.optimizer.schedule", schedule, optimizer.SCHEDULES)
  one_of("config.adversary.loss", options.loss, tuple(LOSSES))
  one_of("config.adversary.penalty", options.penalty, PENALTIES)
  for kind in options.augment:
    one_of("config.adversary.augment", kind, AUGMENTATIONS)
  if options.consistency_weight and not options.augment:
    raise UserError(
      f"config.adversary.consistency_weight={options.consistency_weight:g} compares images with "
      "and without augmentation, and config.adversary.augment is empty; name one there, or set "
      "the weight to 0"
    )
  if options.see_taps and not taps:
    raise UserError(
      "config.adversary.see_taps=True shows the discriminator conditioned images, and "
      "config.generator.taps=() makes none; name a depth there, or set it to False"
    )


def _check_training_of_gpt(config):
  """Raises UserError for the first value of pretrain and finetune that do not fit together."""
  if config.pretrain.augment_prob and config.pretrain.code_cache:
    raise UserError(
      f"config.pretrain.augment_prob={config.pretrain.augment_prob:g} changes images before they "
      f"are encoded, and config.pretrain.code_cache={config.pretrain.code_cache} holds codes of "
      "fixed crops; set the first to 0 (cache_crops='ten' varies crops too) or the second to ''"
    )
  trained = config.finetune.gpt_trained
  if trained not in ("all", "adapter", "none") and not (
    1 <= configs.last_layers(trained) <= config.gpt.depth
  ):
    raise UserError(
      f"config.finetune.gpt_trained={trained!r} is not one of: all, adapter, none, or last:L with "
      f"L from 1 to the {config.gpt.depth} layers of the GPT"
    )
  total = config.finetune.prefix_none_prob + config.finetune.prefix_full_prob
  if not 0 <= total <= 1:
    raise UserError(
      f"config.finetune.prefix_none_prob + prefix_full_prob = {total:g} is outside 0 … 1; lower "
      "one of them"
    )


def _check_ranges(config):
  limits = {
    "rounds": (1, None),
    "unroll": (1, None),
    "data.image_size": (1, MAX_SIDE),
    "class_dropout": (0, 1),
    "gpt.dropout": (0, 0.99),
    "gpt.drop_path": (0, 0.99),
    "generator.noise_dim": (1, None),
    "generator.modulation_dim": (1, None),
    "style_encoder.num_tokens": (1, None),
    "optimizer.end_lr_ratio": (0, 1),
    "tokenizer.continuous_prob": (0, 1),
    "pretrain.augment_prob": (0, 1),
    "pretrain.permute_steps": (0, None),
    "pretrain.permute_anneal_steps": (0, None),
    "finetune.adversarial_start_steps": (0, None),
    "finetune.bank_prob": (0, 1),
    "finetune.bank_rows": (1, None),
    "finetune.noise_candidates": (1, None),
    "finetune.predictor_depth": (0, None),
    "finetune.reconstruct_all_steps": (0, None),
    "gan.class_weight": (0, None),
    "style.head_channels": (1, None),
    "style.jitter_prob": (0, 1),
    "style.partial_prob": (0, 1),
    "style.shift": (0, None),
    "pictures": (1, None),
    "fd_images": (0, 10_000),  # their features are all in memory
    "evaluate_images": (1, None),
    "final_evaluate_images": (1, None),
    "keep_checkpoints": (1, None),
    "keep_every_steps": (0, None),
  }
  limits |= ranges(SamplingOptions, "sample.") | ranges(AdversarialOptions, "adversary.")
  flat = configs.flatten(config)
  for key, (least, most) in limits.items():
    if flat[key] < least or (most is not None and flat[key] > most):
      limit = f"{least:g} or more" if most is None else f"{least:g} … {most:g}"
      raise UserError(f"config.{key}={flat[key]:g} is out of range; choose {limit}")
  scales = tuple(config.pretrain.cache_scales)
  if min(scales, default=0) < 1:
    raise UserError(f"config.pretrain.cache_scales={scales} must hold numbers of 1 or more")


def _check_measuring(config):
  """Raises UserError for the first value of what is measured while training that cannot work."""
  images, size = config.fd_images, config.data.image_size
  if images == 1:
    raise UserError("config.fd_images=1 has no covariance; set it to 0 (off), or 2 or more")
  if images and size < _VGG16_SIDE:
    raise UserError(
      f"config.fd_images={images} needs images of {_VGG16_SIDE} pixels for VGG16, and "
      f"config.data.image_size={size}; set it to 0"
    )
  if config.stage_checkpoint == "best" and not config.best_metric:
    raise UserError(
      "config.stage_checkpoint='best' needs a figure to choose by, and config.best_metric is "
      "empty; name one there, such as validation/psnr"
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
