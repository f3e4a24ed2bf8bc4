"""Every configuration key with its one default.

A config file defines get_config(arg) and starts from default(). Keys that a config does not name
keep the value they have here. Durations end in _steps; 0 switches an option off unless it says
otherwise. Groups of keys that occur more than once are in config_groups.py; what a user may set is
checked by config_check.py.
"""

import math
import re

import jax
import ml_collections

from imgtx_jax import config_groups as groups
from imgtx_jax.errors import UserError

IMAGENET_IMAGES = 1_281_167  # of its training split, for steps out of epochs
STAGES = ("tokenizer", "pretrain", "finetune", "gan", "style")
# What changes how a network runs, not what it computes.
RUNNING = ("remat", "unroll", "implementation")
MEMORIES = ("states", "class", "none", "untrained")


def default():
  """The full configuration, unlocked."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = ("tokenizer", "pretrain", "finetune")  # or ("gan",), without pre-training
  c.rounds = 1
  # A work directory whose tokenizer and GPT this one starts from; its networks must be the same.
  c.finetune_from = ""
  # Compute dtype: "float32", "bfloat16", or "auto" (bfloat16 on accelerators).
  c.dtype = "auto"
  # After a collapse (numbers that are not finite, or a stage's own signs of it in guard_lines lines
  # of the log in a row): "retry" falls back once to the last good checkpoint and goes on at half
  # the learning rates, "stop" stops; "off" sees no signs, and stops where numbers are not finite.
  c.guard = "retry"
  c.guard_lines = 3

  c.parallel = ml_collections.ConfigDict()
  c.parallel.mode = "pmap"  # or "jit", over a mesh data × fsdp
  c.parallel.fsdp = 1
  # Which axis of which arrays fsdp splits, where their size should not decide: "REGEX=AXIS" or
  # "REGEX=none", searched in paths such as params/gpt/transformer/layers/block/mlp/w13/kernel
  # (whose axis 0 are the layers); the first match counts, and pmap splits nothing.
  c.parallel.rules = ()

  c.data = ml_collections.ConfigDict()
  # Or "folder" (path/train, path/val), "tfds:NAME", or "images": those in the folders of path,
  # separated by commas, without classes.
  c.data.source = "emoji"
  c.data.path = ""
  c.data.image_size = 32
  c.data.crop = "center"  # or "random": random-resized-crop of at least min_scale of the area
  c.data.min_scale = 0.35
  c.data.flip = False
  c.data.threads = 4

  c.patch = 4  # pixels a code, for the tokenizer and the generator
  c.tokenizer_kind = "transformer"  # encoder and generator; or "vqgan", the convolutional one
  c.vqgan = groups.vqgan()
  c.encoder = groups.trunk(128, 2, 4)
  c.quantizer = ml_collections.ConfigDict()
  c.quantizer.kind = "vq"  # or "fsq"
  c.quantizer.codebook_size = 512
  c.quantizer.code_dim = 8
  c.quantizer.levels = (8, 8, 8)  # fsq: the codebook has their product of codes
  c.quantizer.commitment = 0.25
  c.quantizer.entropy = 0.0
  c.quantizer.revive_below = 0.05
  c.generator = groups.trunk(128, 4, 4)
  c.generator.taps = (2,)
  c.generator.head_channels = 16
  c.gpt = groups.trunk(192, 6, 6)
  c.gpt.order = "raster"  # or "spread"
  c.gpt.target_position = False
  c.gpt.token_dropout = 0.1
  c.gpt.residual_dropout = 0.1
  c.gpt.ffn_dropout = 0.1
  c.gpt.drop_path = 0.0  # of the deepest layer; the others in proportion to their depth
  c.gpt.class_dropout = 0.1
  c.discriminator = groups.trunk(128, 4, 4, qk_norm=True, layer_scale=0.1)
  c.discriminator.patch = 4
  c.discriminator.overlap = 2

  c.tokenizer = ml_collections.ConfigDict()
  c.tokenizer.steps = 1000
  c.tokenizer.batch_size = 64
  c.tokenizer.optimizer = groups.optimizer(1e-3, schedule="cosine")
  c.tokenizer.ema_decay = 0.999
  c.tokenizer.l1_weight = 0.0
  c.tokenizer.l2_weight = 1.0
  c.tokenizer.gradient_weight = 0.0  # of the differences between neighbouring pixels
  c.tokenizer.tap_weight = 0.25  # of the conditioned images' reconstruction
  c.tokenizer.lpips_weight = 0.0  # needs the extra "perceptual"
  c.tokenizer.perturb = 0.0  # share of codes replaced by neighbours, annealed to 0
  # Share of images decoded from latents, without quantisation: what the style stage starts from.
  c.tokenizer.continuous_share = 0.0
  c.tokenizer.adversarial_weight = 0.0
  c.tokenizer.adversarial_start_steps = 0
  # VQGAN: the weight times the ratio of the losses' gradients at the decoder's last layer.
  c.tokenizer.adversarial_adaptive = False
  c.tokenizer.adversary = groups.adversary(2e-4, class_weight=0.0)

  c.pretrain = ml_collections.ConfigDict()
  c.pretrain.steps = 1000
  c.pretrain.batch_size = 64
  c.pretrain.accumulate = 1  # parts of a batch, one after the other: saves memory, changes nothing
  c.pretrain.optimizer = groups.optimizer(1e-3, schedule="cosine")
  c.pretrain.ema_decay = 0.999
  # RAR (arXiv:2411.00776): every example in a random order for so many steps, then a share of them
  # that falls to none over the anneal steps; the rest in gpt.order. 0 and 0: never.
  c.pretrain.permute_steps = 0
  c.pretrain.permute_anneal_steps = 0
  c.pretrain.code_cache = ""  # a folder, or "auto" (WORKDIR/codes): encode once, not in each step
  c.pretrain.cache_crops = "ten"  # or "center"; mirrored ones only with data.flip
  c.pretrain.cache_scales = (1.1, 1.05)  # of the image's square, over the crops

  c.finetune = ml_collections.ConfigDict()
  c.finetune.steps = 1000
  c.finetune.batch_size = 32
  # What the generator attends to, for ablations: the GPT's "states"; the "class" token's alone;
  # "none"; or the states of an "untrained" GPT of the same kind beside the one that draws the codes
  # (the generator's optimizer trains it).
  c.finetune.memory = "states"
  c.finetune.from_decoder = True  # the generator's start: the tokenizer's decoder, or afresh
  c.finetune.noise_dim = 64
  c.finetune.modulation_dim = 128
  # The dial k: shares of the batch with no code and with all codes known; k is N·u² in between.
  c.finetune.prefix_none_share = 0.3
  c.finetune.prefix_full_share = 0.3
  c.finetune.null_label_share = 0.1
  c.finetune.reconstruction_weight = 10.0
  c.finetune.reconstruction_power = 1.0
  c.finetune.gradient_weight = 0.0  # within the reconstruction, beside the squared error's 1
  c.finetune.lpips_weight = 0.0
  c.finetune.tap_weight = 0.25
  c.finetune.adversarial_weight = 0.03
  c.finetune.reconstruct_warmup_steps = 0  # without the adversarial and the class loss
  # So many steps the reconstruction also counts, less and less, where no code is known.
  c.finetune.reconstruct_all_steps = 0
  c.finetune.class_weight = 0.02  # that the class layer knows what it was asked for
  c.finetune.next_code_weight = 0.1
  # What the image's losses train of the GPT, which the next-code loss trains as a whole: "all",
  # "last:L" (its last L layers), "adapter" (a residual on its states, in its stead) or "none".
  c.finetune.gpt_trained = "all"
  c.finetune.bank_share = 0.25  # of the batch rendered from codes that the GPT sampled
  c.finetune.bank_rows = 8  # per class
  c.finetune.refresh_steps = 200  # between refills of the bank
  c.finetune.optimizer = groups.optimizer(2e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)
  c.finetune.gpt_optimizer = groups.optimizer(2e-5)
  c.finetune.adversary = groups.adversary(2e-4)
  c.finetune.ema_decay = 0.995

  # The generator from noise and class alone: no tokenizer, no GPT. Its grid of mask tokens is of
  # config.patch and as deep as a code.
  c.gan = ml_collections.ConfigDict()
  c.gan.steps = 1000
  c.gan.batch_size = 64
  c.gan.noise_dim = 64
  c.gan.modulation_dim = 128
  c.gan.null_label_share = 0.1
  c.gan.class_weight = 0.02
  c.gan.optimizer = groups.optimizer(2e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)
  c.gan.adversary = groups.adversary(2e-4, class_weight=0.02)
  c.gan.ema_decay = 0.999

  c.style_encoder = groups.trunk(128, 2, 4)
  c.style = groups.style()

  # How samples are drawn while training, and by default afterwards.
  c.sample = ml_collections.ConfigDict()
  c.sample.cfg_scale = 1.5
  c.sample.guidance = "constant"  # over the codes: see decode.Decoding
  c.sample.cfg_start = 0.0
  c.sample.cfg_stop = 1.0
  c.sample.cfg_power = 2.75
  c.sample.temperature = 1.0
  c.sample.top_k = 0
  c.sample.top_p = 1.0
  c.sample.truncation = 1.0  # of the noise, and w_scale: see sampling.Sampling
  c.sample.w_scale = 1.0
  c.sample.refine_steps = 0  # of the condition vectors, uphill on the discriminator: refine.py
  c.sample.refine_rate = 0.05
  c.sample.refine_radius = 0.2

  # Distances of a stage's own images from held-out ones while it trains, on VGG16's features, of so
  # many images (few: see stages/distance.py); 0: none. Needs the extra "perceptual".
  c.metrics = ml_collections.ConfigDict()
  c.metrics.fd_images = 0
  # The checkpoint with the best of these held-out figures is kept too: names between commas, such
  # as "samples/k64_fd_vgg16, validation/psnr", of which a stage goes by the first that it has.
  c.best_metric = ""
  c.best_mode = "auto"  # by the figure's name; or "min" or "max"
  c.start_from = (
    "last"  # which checkpoint a stage takes of those before it; or "best", if one has it
  )

  c.log_steps = 20
  c.evaluate_steps = 200
  c.evaluate_images = 512
  c.picture_steps = 200
  c.pictures = 32
  c.checkpoint_steps = 100
  c.keep_checkpoints = 2  # the newest
  c.keep_every_steps = 0  # and those of every so many steps; 0: none
  return c


def last_layers(trained):
  """L of finetune.gpt_trained = "last:L", or 0."""
  kind, _, count = trained.partition(":")
  return int(count) if kind == "last" and count.isdecimal() else 0


def sharding_rules(config):
  """config.parallel.rules as parallel.make_parallel takes them: (regex, axis or None) pairs."""
  rules = []
  for text in config.parallel.rules:
    pattern, _, axis = text.rpartition("=")
    try:
      re.compile(pattern)
      rules.append((pattern, None if axis == "none" else int(axis)))
      if not pattern or (axis != "none" and int(axis) < 0):
        raise ValueError("no regex, or an axis under 0")
    except (re.error, ValueError) as error:
      raise UserError(
        f"config.parallel.rules has {text!r}, which is no REGEX=AXIS ({error}); write for example "
        "'codebook=none' or 'head/kernel=1'"
      ) from error
  return rules


def compute_dtype(config):
  """The compute dtype as a name."""
  if config.dtype == "auto":
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return config.dtype


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
