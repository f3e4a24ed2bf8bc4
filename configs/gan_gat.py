"""The generator from noise and class alone after GAT (arXiv:2509.24935): imagenet256 or small.

  python -m imgtx_jax.main --config configs/gan_gat.py:imagenet256 --workdir runs/gat \\
    --config.data.path=DATA_DIR     # of: python -m imgtx_jax.convert imagenet
  python -m imgtx_jax.main --config configs/gan_gat.py:small --workdir runs/gat_small

| variant | data | for | generator and discriminator | ours |
|---|---|---|---|---|
| imagenet256 (the default) | ImageNet 256×256 | GPUs | width 768, 12 layers each | not run |
| small | embedded emoji 32×32 | 2 CPU cores | width 128, 4 and 3 layers | FD-VGG16 390.1 |

Theirs: FID 2.18 for GAT-XL/2 (602 M, 60 epochs of ImageNet 256). They generate latents of a VAE;
here it is pixels, in patches of 16. Taken over: relativistic loss with R1 and R2 by finite
differences (weight 0.1, σ 0.01), DiffAugment, AdamW (0, 0.99) at 2e-4 · 768 / width, batch 512,
average .999, QK-norm, layer scale 0.1 in the discriminator, its class by projection, and the
conditioned images shown to it under noise. Not taken over: the alignment of its features with a
frozen network.

Hours: small took 14 minutes of one CPU core (docs/results.md); the other not run.
"""

from imgtx_jax.config import defaults
from imgtx_jax.errors import one_of


def get_config(variant="imagenet256"):
  """variant: imagenet256 or small."""
  one_of("gan_gat variant", variant, ("imagenet256", "small"))
  config = defaults.default()
  config.stages = ("gan",)
  config.generator.qk_norm = True
  config.adversary.augment = ("color", "translation", "cutout")
  config.adversary.see_taps = True
  # 2e-4 · 768 / width at width 768. For small it would be 1.2e-3: too much for so small a batch.
  for player in (config.gan, config.adversary):
    player.optimizer.learning_rate = 2e-4
  (_imagenet256 if variant == "imagenet256" else _small)(config)
  return config.lock()


def _imagenet256(config):
  config.data.source = "tfds:imagenet2012"
  config.data.image_size = 256
  config.data.flip = True
  config.data.threads = 16
  config.patch = config.discriminator.patch = 16
  config.generator.taps = (4, 8)
  config.discriminator.overlap = 0
  config.quantizer.code_dim = 64
  config.remat = "dots"
  for network in ("generator", "discriminator"):
    config[network].update(dict(width=768, depth=12, num_heads=12))
  config.gan.update(dict(batch_size=512, steps=60 * defaults.IMAGENET_IMAGES // 512))
  config.generator.modulation_dim = 768
  config.log_steps = 100
  config.evaluate_steps = config.picture_steps = 5000
  config.checkpoint_steps = 2500


def _small(config):
  config.discriminator.update(dict(depth=3, patch=8, overlap=4))
  config.remat = "full"
  config.gan.update(dict(batch_size=32, steps=1000))
