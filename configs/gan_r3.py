"""The generator from noise and class alone with R3GAN's loss: imagenet64 or small.

  python -m imgtx_jax.main --config configs/gan_r3.py:imagenet64 --workdir runs/r3 \\
    --config.data.path=DATA_DIR     # of: python -m imgtx_jax.convert imagenet
  python -m imgtx_jax.main --config configs/gan_r3.py:small --workdir runs/r3_small

| variant | data | for | generator and discriminator | ours |
|---|---|---|---|---|
| imagenet64 (the default) | ImageNet 64×64 | GPUs, bfloat16 | width 512, 8 layers each | not run |
| small | embedded emoji 32×32 | 2 CPU cores | width 128, 4 and 3 layers | FD-VGG16 299.4 |

Theirs (arXiv:2501.05441): FID 2.09 on ImageNet 64×64, with convolutional networks; here their loss
trains this codebase's Transformers. Taken over: relativistic pairing with exact R1 and R2 on the
whole batch, weight γ / 2 with γ from 1 to 0.1 (here over the first fifth), Adam (0, 0.99), rates
that fall from 2e-4 to 5e-5.

Hours: small took 17 minutes of one CPU core (docs/results.md); the other not run.
"""

from imgtx_jax.config import defaults
from imgtx_jax.errors import one_of


def get_config(variant="imagenet64"):
  """variant: imagenet64 or small."""
  one_of("gan_r3 variant", variant, ("imagenet64", "small"))
  config = defaults.default()
  config.stages = ("gan",)
  config.generator.taps = ()
  config.adversary.update(dict(penalty="exact", penalty_fraction=1.0))
  config.adversary.update(
    dict(penalty_weight=0.5, penalty_weight_end=0.05, penalty_anneal_fraction=0.2)
  )
  config.optimizer.end_lr_ratio = 0.25
  for player in (config.gan, config.adversary):
    player.optimizer.update(dict(learning_rate=2e-4, schedule="cosine"))
  (_imagenet64 if variant == "imagenet64" else _small)(config)
  return config.lock()


def _imagenet64(config):
  config.data.source = "tfds:imagenet2012"
  config.data.image_size = 64
  config.data.flip = True
  config.data.threads = 16
  config.quantizer.code_dim = 64
  config.remat = "dots"
  for network in ("generator", "discriminator"):
    config[network].update(dict(width=512, depth=8, num_heads=8))
  config.gan.update(dict(batch_size=256, steps=60 * defaults.IMAGENET_IMAGES // 256))
  config.generator.modulation_dim = 512
  config.adversary.augment = ()
  config.log_steps = 100
  config.evaluate_steps = config.picture_steps = 5000
  config.checkpoint_steps = 2500


def _small(config):
  config.discriminator.update(dict(depth=3, patch=8, overlap=4))
  config.remat = "full"
  config.gan.update(dict(batch_size=32, steps=1000))
