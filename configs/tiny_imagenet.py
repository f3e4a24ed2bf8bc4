"""Tiny-ImageNet (64×64, a folder of class folders) through all stages, in two sizes.

  python -m imgtx_jax.main --config configs/tiny_imagenet.py:small --workdir runs/tiny \\
    --config.data.path=DIR     # DIR/train/CLASS/*.JPEG, and DIR/val/CLASS/*.JPEG if there is one

| variant | for | patch | codes | parameters (tokenizer / GPT / generator) |
|---|---|---|---|---|
| small (the default) | 2 CPU cores, about 20 minutes | 8 | 64 | 1.7 M / 1.6 M / 1.9 M |
| base | one GPU, bfloat16 | 4 | 256 | 23 M / 39 M / 23 M |

docs/results.md says what of `small` was run; `base` was not run.
"""

from imgtx_jax.config import defaults
from imgtx_jax.errors import one_of


def get_config(variant="small"):
  """variant: small or base."""
  one_of("tiny_imagenet variant", variant, ("small", "base"))
  config = defaults.default()
  config.data.source = "folder"
  config.data.path = "tiny_imagenet"
  config.data.image_size = 64
  config.data.crop = "random"
  config.data.min_scale = 0.7
  config.data.flip = True
  config.quantizer.codebook_size = 1024
  config.gpt.order = "spread"
  (_small if variant == "small" else _base)(config)
  return config.lock()


def _small(config):
  config.patch = 8
  config.encoder.depth = 3
  config.gpt.update(dict(width=160, depth=4, num_heads=5))
  config.remat = "full"
  for stage, steps in (("tokenizer", 400), ("pretrain", 400), ("finetune", 150)):
    config[stage].steps = steps
    config[stage].batch_size = 32
  config.pretrain.optimizer.learning_rate = 2e-3
  config.pretrain.ema_decay = 0.99
  # Edges and flat areas count, and unlikely codes leave seams: as in the quickstart.
  config.tokenizer.gradient_weight = config.finetune.gradient_weight = 1.0
  config.sample.temperature = config.sample.top_p = 0.9
  config.discriminator.update(dict(depth=3, patch=16, overlap=8))
  config.finetune.prefix_none_prob = 0.2
  config.finetune.prefix_full_prob = 0.65
  config.finetune.reconstruction_weight = 20.0
  config.finetune.optimizer.learning_rate = 5e-5
  config.finetune.optimizer.warmup_steps = 20
  config.finetune.freeze = "generator/(tap_)?head"
  config.adversary.penalty_weight = 0.5
  config.adversary.optimizer.warmup_steps = 20
  config.adversary.augment = ("translation",)
  config.finetune.ema_decay = 0.99
  config.finetune.bank_rows = 2


def _base(config):
  config.patch = 4
  config.discriminator.patch = 4
  config.encoder.update(dict(width=384, depth=5, num_heads=6))
  config.generator.update(dict(width=384, depth=8, num_heads=6, taps=(4,)))
  config.discriminator.update(dict(width=384, depth=8, num_heads=6))
  config.gpt.update(dict(width=512, depth=12, num_heads=8))
  for stage, steps in (("tokenizer", 20000), ("pretrain", 40000), ("finetune", 20000)):
    config[stage].steps = steps
    config[stage].batch_size = 256
    config[stage].optimizer.warmup_steps = 1000
    config[stage].ema_decay = 0.9995
  config.tokenizer.optimizer.learning_rate = 5e-4
  config.pretrain.optimizer.learning_rate = 5e-4
  config.tokenizer.adversarial_weight = 0.05
  config.tokenizer.adversarial_start_steps = 5000
  config.log_steps = 100
  config.evaluate_steps = 2000
  config.picture_steps = 2000
  config.checkpoint_steps = 1000
