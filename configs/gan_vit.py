"""The generator from noise and class alone after ViTGAN (arXiv:2107.04589): cifar10 or small.

  python -m imgtx_jax.main --config configs/gan_vit.py:cifar10 --workdir runs/vitgan \\
    --config.data.path=TFDS_DATA_DIR     # cifar10, prepared as array_record
  python -m imgtx_jax.main --config configs/gan_vit.py:small --workdir runs/vitgan_small

| variant | data | for | generator and discriminator | ours |
|---|---|---|---|---|
| cifar10 (the default) | CIFAR-10 32×32 | one GPU, bfloat16 | width 384, 4 layers each | not run |
| small | embedded emoji 32×32 | 2 CPU cores | width 128, 3 layers each | FD-VGG16 260.0 |

Theirs: FID 4.92 on CIFAR-10. Taken over: a discriminator with attention by distance, queries tied
to keys, spectral norms held at their first values, and patches that overlap; non-saturating loss,
DiffAugment, balanced consistency, batch 128. Other than theirs: the penalty is on real and
generated images (R1 and R2), the generator decodes patches linearly with a light convolution, and
knows the class.

Hours: small took 21 minutes of one CPU core (docs/results.md); the other not run.
"""

from imgtx_jax.config import defaults
from imgtx_jax.errors import one_of


def get_config(variant="cifar10"):
  """variant: cifar10 or small."""
  one_of("gan_vit variant", variant, ("cifar10", "small"))
  config = defaults.default()
  config.stages = ("gan",)
  config.generator.taps = ()
  config.discriminator.update(
    dict(attention="l2", spectral_norm=True, qk_norm=False, layer_scale=0.0, overlap=2)
  )
  config.adversary.update(dict(loss="nonsaturating", penalty="exact", consistency_weight=10.0))
  config.adversary.augment = ("color", "translation", "cutout")
  (_cifar10 if variant == "cifar10" else _small)(config)
  return config.lock()


def _cifar10(config):
  config.data.source = "tfds:cifar10"
  config.data.flip = True
  config.quantizer.code_dim = 64
  for network in ("generator", "discriminator"):
    config[network].update(dict(width=384, depth=4, num_heads=6))
  config.gan.update(dict(batch_size=128, steps=320_000))
  config.generator.modulation_dim = 384
  config.adversary.penalty_weight = 5.0
  config.log_steps = 100
  config.evaluate_steps = config.picture_steps = 5000
  config.checkpoint_steps = 2500


def _small(config):
  config.generator.depth = config.discriminator.depth = 3
  config.remat = "full"
  config.gan.update(dict(batch_size=32, steps=1000))
