"""Every configuration key with its one default, and the checks of what a user may have set.

A config file defines get_config(arg) and starts from default(). Keys that a config does not name
keep the value they have here. Durations end in _steps; 0 switches an option off unless it says
otherwise.
"""

import math

import jax
import ml_collections

from imgtx_jax import optim
from imgtx_jax.errors import UserError
from imgtx_jax.losses import adversarial
from imgtx_jax.models import transformer

STAGES = ("tokenizer", "pretrain", "finetune")


def _trunk(width, layers, heads, **overrides):
  """Hyperparameters of one Transformer. hidden 0 means 8/3 of the width."""
  values = dict(
    width=width,
    layers=layers,
    heads=heads,
    hidden=0,
    qk_norm=False,
    layer_scale=0.0,
    implementation="xla",
    remat="none",
  )
  return ml_collections.ConfigDict(values | overrides)


def _optimizer(learning_rate, **overrides):
  """Options of optim.make."""
  values = dict(
    learning_rate=learning_rate,
    schedule="constant",
    warmup_steps=100,
    final_share=0.0,
    inverse_rate=1e-5,
    width_base=0,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.05,
    clip_norm=1.0,
    freeze="",
  )
  return ml_collections.ConfigDict(values | overrides)


def _adversary(learning_rate):
  """Options of a player against a discriminator, shared by the stages that have one."""
  return dict(
    loss="relativistic",
    # R1 and R2: "exact", or "difference" (finite differences over a share of the batch).
    penalty="difference",
    penalty_weight=0.1,
    penalty_sigma=0.01,
    penalty_share=0.25,
    augment=("color", "translation"),
    optimizer=_optimizer(learning_rate, beta1=0.0, beta2=0.99, weight_decay=0.0),
  )


def default():
  """The full configuration, unlocked."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = STAGES
  c.rounds = 1
  # Compute dtype: "float32", "bfloat16", or "auto" (bfloat16 on accelerators).
  c.dtype = "auto"

  c.parallel = ml_collections.ConfigDict()
  c.parallel.mode = "pmap"  # or "jit", over a mesh data × fsdp
  c.parallel.fsdp = 1

  c.data = ml_collections.ConfigDict()
  c.data.source = "emoji"  # or "folder" (path/train, path/val), or "tfds:NAME"
  c.data.path = ""
  c.data.image_size = 32
  c.data.crop = "center"  # or "random": random-resized-crop of at least min_scale of the area
  c.data.min_scale = 0.35
  c.data.flip = False
  c.data.threads = 4

  c.patch = 4  # pixels a code, for the tokenizer and the generator
  c.encoder = _trunk(128, 2, 4)
  c.quantizer = ml_collections.ConfigDict()
  c.quantizer.kind = "vq"  # or "fsq"
  c.quantizer.codebook_size = 512
  c.quantizer.code_dim = 8
  c.quantizer.levels = (8, 8, 8)  # fsq: the codebook has their product of codes
  c.quantizer.commitment = 0.25
  c.quantizer.entropy = 0.0
  c.quantizer.revive_below = 0.05
  c.generator = _trunk(128, 4, 4)
  c.generator.taps = (2,)
  c.generator.head_channels = 16
  c.gpt = _trunk(192, 6, 6)
  c.gpt.order = "raster"  # or "spread"
  c.gpt.target_position = False
  c.gpt.dropout = 0.1
  c.gpt.class_dropout = 0.1
  c.discriminator = _trunk(128, 4, 4, qk_norm=True, layer_scale=0.1)
  c.discriminator.patch = 4
  c.discriminator.overlap = 2

  c.tokenizer = ml_collections.ConfigDict()
  c.tokenizer.steps = 1000
  c.tokenizer.batch_size = 64
  c.tokenizer.optimizer = _optimizer(1e-3, schedule="cosine")
  c.tokenizer.ema_decay = 0.999
  c.tokenizer.l1_weight = 0.0
  c.tokenizer.l2_weight = 1.0
  c.tokenizer.tap_weight = 0.25  # of the conditioned images' reconstruction
  c.tokenizer.lpips_weight = 0.0  # needs the extra "perceptual"
  c.tokenizer.perturb = 0.0  # share of codes replaced by neighbours, annealed to 0
  c.tokenizer.adversarial_weight = 0.0
  c.tokenizer.adversarial_start_steps = 0
  c.tokenizer.adversary = _adversary(2e-4)

  c.pretrain = ml_collections.ConfigDict()
  c.pretrain.steps = 1000
  c.pretrain.batch_size = 64
  c.pretrain.optimizer = _optimizer(1e-3, schedule="cosine")
  c.pretrain.ema_decay = 0.999
  c.pretrain.code_cache = ""  # a folder, or "auto" (WORKDIR/codes): encode once, not in each step
  c.pretrain.cache_crops = "ten"  # or "center"; mirrored ones only with data.flip
  c.pretrain.cache_scales = (1.1, 1.05)  # of the image's square, over the crops

  c.finetune = ml_collections.ConfigDict()
  c.finetune.steps = 1000
  c.finetune.batch_size = 32
  c.finetune.noise_dim = 64
  c.finetune.modulation_dim = 128
  # The dial k: shares of the batch with no code and with all codes known; k is N·u² in between.
  c.finetune.prefix_none_share = 0.3
  c.finetune.prefix_full_share = 0.3
  c.finetune.null_label_share = 0.1
  c.finetune.reconstruction_weight = 10.0
  c.finetune.reconstruction_power = 1.0
  c.finetune.lpips_weight = 0.0
  c.finetune.tap_weight = 0.25
  c.finetune.adversarial_weight = 0.03
  c.finetune.reconstruct_warmup_steps = 0
  c.finetune.class_weight = 0.02
  c.finetune.next_code_weight = 0.1
  c.finetune.gpt_gradient = True  # whether the discriminator's gradient reaches the GPT
  c.finetune.bank_share = 0.25  # of the batch rendered from codes that the GPT sampled
  c.finetune.bank_rows = 8  # per class
  c.finetune.refresh_steps = 200  # between refills of the bank
  c.finetune.optimizer = _optimizer(2e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)
  c.finetune.gpt_optimizer = _optimizer(2e-5)
  c.finetune.adversary = _adversary(2e-4)
  c.finetune.ema_decay = 0.995

  # How samples are drawn while training, and by default afterwards.
  c.sample = ml_collections.ConfigDict()
  c.sample.cfg_scale = 1.5
  c.sample.temperature = 1.0
  c.sample.top_k = 0
  c.sample.top_p = 1.0

  c.log_steps = 20
  c.evaluate_steps = 200
  c.evaluate_images = 512
  c.picture_steps = 200
  c.pictures = 32
  c.checkpoint_steps = 100
  c.keep_checkpoints = 2
  return c


def compute_dtype(config):
  """The compute dtype as a name."""
  if config.dtype == "auto":
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return config.dtype


def check(config):
  """Raises UserError for the first value that cannot work; one line each."""
  one_of("config.stages", [s for s in config.stages if s not in STAGES] or STAGES[0], STAGES)
  one_of("config.dtype", config.dtype, ("auto", "float32", "bfloat16"))
  one_of("config.parallel.mode", config.parallel.mode, ("pmap", "jit"))
  one_of("config.data.crop", config.data.crop, ("center", "random"))
  one_of("config.quantizer.kind", config.quantizer.kind, ("vq", "fsq"))
  one_of("config.gpt.order", config.gpt.order, ("raster", "spread"))
  one_of("config.pretrain.cache_crops", config.pretrain.cache_crops, ("ten", "center"))
  if not config.stages:
    raise UserError(f"config.stages is empty; name at least one of {', '.join(STAGES)}")
  if config.rounds < 1:
    raise UserError(f"config.rounds={config.rounds} is under 1; set it to 1 or more")
  for key, patch in (("patch", config.patch), ("discriminator.patch", config.discriminator.patch)):
    if patch < 1 or config.data.image_size % patch:
      raise UserError(
        f"config.data.image_size={config.data.image_size} is not divisible by "
        f"config.{key}={patch}; choose a size that is a multiple of {max(patch, 1)}"
      )
  for key in ("encoder", "generator", "gpt", "discriminator"):
    one_of(f"config.{key}.remat", config[key].remat, tuple(transformer.REMAT_POLICIES))
    one_of(f"config.{key}.implementation", config[key].implementation, ("xla", "cudnn"))
    if config[key].layers < 1:
      raise UserError(f"config.{key}.layers={config[key].layers} is under 1; set it to 1 or more")
    width, heads = config[key].width, config[key].heads
    if heads < 1 or width % (4 * heads):
      raise UserError(
        f"config.{key}.width={width} is not a multiple of 4·heads={4 * heads}, as two-dimensional "
        f"RoPE needs; change config.{key}.width or config.{key}.heads"
      )
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
  _check_stages(config)


def _check_stages(config):
  devices = jax.device_count()
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
    for key in [k for k in options if k.endswith("optimizer")]:
      one_of(f"config.{stage}.{key}.schedule", options[key].schedule, optim.SCHEDULES)
    if "adversary" in options:
      schedule = options.adversary.optimizer.schedule
      one_of(f"config.{stage}.adversary.optimizer.schedule", schedule, optim.SCHEDULES)
      one_of(f"config.{stage}.adversary.loss", options.adversary.loss, tuple(adversarial.LOSSES))
      one_of(
        f"config.{stage}.adversary.penalty", options.adversary.penalty, ("exact", "difference")
      )
      for kind in options.adversary.augment:
        one_of(f"config.{stage}.adversary.augment", kind, ("color", "translation", "cutout"))
  _check_ranges(config)
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
    "finetune.null_label_share": (0, 1),
    "tokenizer.adversary.penalty_share": (1e-6, 1),
    "finetune.adversary.penalty_share": (1e-6, 1),
    "gpt.class_dropout": (0, 1),
    "gpt.dropout": (0, 0.99),
    "sample.temperature": (0, None),
    "sample.top_k": (0, None),
    "sample.top_p": (0, 1),
    "pictures": (1, None),
    "evaluate_images": (1, None),
  }
  flat = flatten(config)
  for key, (least, most) in ranges.items():
    if flat[key] < least or (most is not None and flat[key] > most):
      limit = f"{least:g} or more" if most is None else f"{least:g} … {most:g}"
      raise UserError(f"config.{key}={flat[key]:g} is out of range; choose {limit}")
  for key, least in (("quantizer.levels", 2), ("pretrain.cache_scales", 1)):
    if min(flat[key], default=0) < least:
      raise UserError(f"config.{key}={tuple(flat[key])} must hold numbers of {least} or more")


def one_of(key, value, allowed):
  """UserError naming the key unless value is among allowed."""
  if value not in allowed:
    raise UserError(f"{key}={value!r} is not one of: {', '.join(map(str, allowed))}")


def grid_shape(config):
  """(h, w) of an image's codes."""
  return (config.data.image_size // config.patch,) * 2


def num_codes(config):
  """N, the codes of one image."""
  return math.prod(grid_shape(config))


def flatten(config, prefix=""):
  """{dotted key: value} of every leaf, tuples as lists, as JSON has them."""
  flat = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
