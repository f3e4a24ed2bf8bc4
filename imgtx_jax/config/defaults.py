"""Every config key with its one default.

A config file defines get_config(arg) and starts from default(). Keys that it does not name keep
the value they have here. Durations end in _steps, probabilities in _prob, fractions in _fraction;
0 switches an option off unless it says otherwise. groups.py has the blocks; validation.py checks
what a user may set.
"""

import math
import re

import jax
import ml_collections

from imgtx_jax.config import groups
from imgtx_jax.errors import UserError

IMAGENET_IMAGES = 1_281_167  # of its training split, for steps out of epochs
STAGES = ("tokenizer", "pretrain", "finetune", "gan", "style")
# Keys that name a file or a folder; cli/paths.py makes them absolute.
PATH_KEYS = ("data.path", "style.data.path", "pretrain.code_cache", "init_from")
MEMORIES = ("states", "class", "none", "untrained")


def default():
  """Returns the full config, unlocked."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = ("tokenizer", "pretrain", "finetune")  # in this order; or ("gan",), without the others
  c.rounds = 1  # of pretrain and finetune
  c.init_from = ""  # a work directory of the same networks, whose tokenizer and GPT are taken over
  c.stage_checkpoint = "last"  # of an earlier stage, to start from; or "best", where it has one
  # After a collapse (numbers that are not finite, or a stage's own signs of it in three lines of
  # the log in a row): "stop" stops and keeps the last good checkpoint, "retry" goes on from it,
  # once, at half the learning rates; "off" sees no signs, and stops where numbers are not finite.
  c.guard = "stop"

  # How networks run, not what they compute.
  c.dtype = "auto"  # of activations: "float32", "bfloat16", or bfloat16 on accelerators only
  c.remat = "none"  # activations computed again for the gradient: "full" (all), "dots" or "none"
  c.attention_kernel = "auto"  # or "xla", "cudnn", "pallas": see models/attention_kernels.py
  c.unroll = 1  # layers in one turn of the scan: more run faster and take longer to compile
  c.parallel = groups.parallel()
  c.data = groups.data()

  # The networks.
  c.tokenizer_kind = "transformer"  # of encoder and generator; or "vqgan", convolutional
  c.patch = 4  # pixels a side that one code stands for
  c.window = 0  # tokens a side of windowed attention in encoder, generator, style encoder; even
  c.vqgan = groups.vqgan()
  c.encoder = groups.network(128, 2, 4)
  c.quantizer = groups.quantizer()
  c.generator = groups.generator()
  c.gpt = groups.gpt()
  c.discriminator = groups.discriminator()
  c.style_encoder = groups.network(128, 2, 4, num_tokens=64)  # of a style
  c.class_dropout = 0.1  # probability that pretrain, finetune and gan leave the class out

  # Training.
  c.optimizer = groups.optimizer()
  c.adversary = groups.adversary()
  c.tokenizer = groups.tokenizer()
  c.pretrain = groups.pretrain()
  c.finetune = groups.finetune()
  c.gan = groups.gan()
  c.style = groups.style()
  c.sample = groups.sample()

  # What is logged, measured and kept.
  c.log_steps = 20  # from one line of metrics to the next
  c.evaluate_steps = 200  # from one evaluation on held-out images to the next
  c.evaluate_images = 512  # held-out images of an evaluation while training, at most
  c.final_evaluate_images = 10_000  # of the one at the end; each gets samples, too
  c.fd_images = 0  # held-out images of the FD in training (stages/online_fd.py); 0: none
  c.picture_steps = 200  # from one grid of pictures to the next
  c.pictures = 32  # of a grid
  c.checkpoint_steps = 100  # from one checkpoint to the next
  c.keep_checkpoints = 2  # the newest
  c.keep_every_steps = 0  # and those of every so many steps
  # The checkpoint with the best of these held-out figures is kept too: names between commas, such
  # as "samples/k64_fd_vgg16, validation/psnr", of which a stage goes by the first that it has.
  c.best_metric = ""
  c.best_mode = "auto"  # by the figure's name; or "min" or "max"
  return c


def predicts_places(config):
  """Returns whether the GPT is given the position that each state predicts.

  It is outside raster order, and where pre-training permutes the order.
  """
  permuted = config.pretrain.permute_steps + config.pretrain.permute_anneal_steps > 0
  return config.gpt.order != "raster" or permuted


def last_layers(trained):
  """Returns L of finetune.gpt_trained = "last:L", or 0 for other values."""
  kind, _, count = trained.partition(":")
  return int(count) if kind == "last" and count.isdecimal() else 0


def sharding_rules(config):
  """Returns config.parallel.rules as (regex, axis or None) pairs; UserError for a malformed one."""
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
  """Returns the name of the compute dtype; "auto" is float32 on CPUs and bfloat16 elsewhere.

  platform: "cpu", "gpu" or "tpu"; default: this process's.
  """
  if config.dtype == "auto":
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
  return config.dtype


def grid_shape(config):
  """Returns the shape (h, w) of an image's grid of codes."""
  return (config.data.image_size // config.patch,) * 2


def num_codes(config):
  """Returns N, the number of codes of an image."""
  return math.prod(grid_shape(config))


def flatten(config, prefix=""):
  """Returns {dotted key: value} of every leaf, with tuples as lists, as in JSON."""
  flat = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
