"""Every configuration key with its one default.

A config file defines get_config(arg) and starts from default(). Keys that a config does not name
keep the value they have here. Durations end in _steps; 0 switches an option off unless it says
otherwise. Most keys are in groups.py; what a user may set is checked by validation.py.
"""

import math
import re

import jax
import ml_collections

from imgtx_jax.config import groups
from imgtx_jax.errors import UserError

IMAGENET_IMAGES = 1_281_167  # of its training split, for steps out of epochs
STAGES = ("tokenizer", "pretrain", "finetune", "gan", "style")
# What changes how a network runs, not what it computes.
RUNNING = ("remat", "unroll", "implementation")
# Keys that name a file or a folder; cli/paths.py makes them absolute.
PATH_KEYS = ("data.path", "style.data.path", "pretrain.code_cache", "finetune_from")
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
  # of the log in a row): "stop" stops and keeps the last good checkpoint, "retry" goes on from it,
  # once, at half the learning rates; "off" sees no signs, and stops where numbers are not finite.
  c.guard = "stop"
  c.guard_lines = 3

  c.parallel = ml_collections.ConfigDict()
  c.parallel.mode = "pmap"  # or "jit", over a mesh data × fsdp
  c.parallel.fsdp = 1
  # Which axis of which arrays fsdp splits, where their size should not decide: "REGEX=AXIS" or
  # "REGEX=none", searched in paths such as params/gpt/transformer/layers/block/mlp/w13/kernel
  # (whose axis 0 are the layers); the first match counts, and pmap splits nothing.
  c.parallel.rules = ()

  c.data = groups.data()

  c.patch = 4  # pixels a code, for the tokenizer and the generator
  c.tokenizer_kind = "transformer"  # encoder and generator; or "vqgan", the convolutional one
  c.vqgan = groups.vqgan()
  c.encoder = groups.trunk(128, 2, 4)
  c.quantizer = groups.quantizer()
  c.generator = groups.trunk(128, 4, 4)
  c.generator.taps = (2,)
  c.generator.head_channels = 16
  c.generator.head_overlap = False  # a token draws beyond its patch, under a window
  c.gpt = groups.gpt()
  c.discriminator = groups.trunk(128, 4, 4, qk_norm=True, layer_scale=0.1)
  c.discriminator.patch = 4
  c.discriminator.overlap = 2

  c.style_encoder = groups.trunk(128, 2, 4)

  c.tokenizer = groups.tokenizer()
  c.pretrain = groups.pretrain()
  c.finetune = groups.finetune()
  c.gan = groups.gan()
  c.style = groups.style()
  c.sample = groups.sample()

  # Distances of a stage's own images from held-out ones while it trains, on VGG16's features, of so
  # many images (few: see stages/distance.py); 0: none. Needs the extra "perceptual".
  c.metrics = ml_collections.ConfigDict()
  c.metrics.fd_images = 0
  # The checkpoint with the best of these held-out figures is kept too: names between commas, such
  # as "samples/k64_fd_vgg16, validation/psnr", of which a stage goes by the first that it has.
  c.best_metric = ""
  c.best_mode = "auto"  # by the figure's name; or "min" or "max"
  # Which checkpoint a stage takes of those before it: "last", or "best" where one has it.
  c.start_from = "last"

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


def compute_dtype(config, platform=None):
  """The compute dtype as a name; "auto" is float32 on CPUs and bfloat16 elsewhere.

  platform: "cpu", "gpu" or "tpu"; default: this process's.
  """
  if config.dtype == "auto":
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
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
