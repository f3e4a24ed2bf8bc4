"""ImageNet at 256×256 after LlamaGen (arXiv:2406.06525): b, l, xl, xxl or 3b.

  python -m imgtx_jax.main --config configs/imagenet256.py:b --workdir runs/b256 \\
    --config.data.path=DATA_DIR     # of: python -m imgtx_jax.convert imagenet

| variant | GPT | batch | learning rate | guidance | their FID (at size) |
|---|---|---|---|---|---|
| b (the default) | 111 M | 256 | 1e-4 | 2.0 | 5.46 (256) |
| l | 343 M | 256 | 1e-4 | 2.0 | 3.80 (256) |
| xl | 775 M | 256 | 2e-4 | 1.75 | |
| xxl | 1.4 B | 512 | 2e-4 | 1.75 | |
| 3b | 3.1 B | 512 | 2e-4 | 1.65 | 2.18 (384) |

Stages: the VQ-16 tokenizer for 40 epochs (L2, LPIPS, adversary from step 20,000), the GPT for 300
epochs of cached ten-crop codes (AdamW .9/.95, decay .05, clip 1, average .9999), then fine-tuning
against the discriminator. The tokenizer of published weights comes by imgtx_jax.convert instead:
configs/from_workdir.py starts from it. xl and larger split their state over devices (jit, fsdp).

Hours and figures of our own: not run.
"""

from imgtx_jax.config import defaults
from imgtx_jax.convert import llamagen
from imgtx_jax.errors import one_of

# variant → (name of the GPT, batch, learning rate, fsdp)
VARIANTS = {
  "b": ("B", 256, 1e-4, 1),
  "l": ("L", 256, 1e-4, 1),
  "xl": ("XL", 256, 2e-4, 4),
  "xxl": ("XXL", 512, 2e-4, 8),
  "3b": ("3B", 512, 2e-4, 16),
}


def get_config(variant="b"):
  """variant: b, l, xl, xxl or 3b."""
  one_of("imagenet256 variant", variant, tuple(VARIANTS))
  name, batch, rate, fsdp = VARIANTS[variant]
  tokenizer = llamagen.TOKENIZER_VARIANTS["VQ-16"]
  config = llamagen.imported_config(llamagen.GPT_VARIANTS[name], tokenizer, image_size=256)
  config.data.crop = "random"
  config.data.flip = True
  config.data.threads = 16
  if fsdp > 1:
    config.parallel.mode = "jit"
    config.parallel.fsdp = fsdp
  config.remat = "dots"
  _tokenizer(config.tokenizer)
  _pretrain(config.pretrain, batch, rate)
  _finetune(config.finetune, batch)
  config.log_steps = 100
  config.evaluate_steps = 5000
  config.picture_steps = 5000
  config.checkpoint_steps = 2500
  return config.lock()


def _epochs(count, batch):
  return count * defaults.IMAGENET_IMAGES // batch


def _tokenizer(options):
  options.batch_size = 128
  options.steps = _epochs(40, options.batch_size)
  options.optimizer.learning_rate = 1e-4
  options.optimizer.schedule = "constant"
  options.lpips_weight = 1.0
  options.adversarial_weight = 0.5
  options.adversarial_start_steps = 20_000
  options.adversary.loss = "hinge"
  options.ema_decay = 0.999


def _pretrain(options, batch, rate):
  options.batch_size = batch
  options.steps = _epochs(300, batch)
  options.optimizer.learning_rate = rate
  options.optimizer.schedule = "constant"
  options.ema_decay = 0.9999
  options.code_cache = "auto"


def _finetune(options, batch):
  options.batch_size = batch
  options.steps = _epochs(20, batch)
  options.adversarial_start_steps = _epochs(2, batch)  # the convolutional decoder gives no start
  options.bank_rows = 2  # a refill draws 2,000 images
  options.refresh_steps = 5000
  options.lpips_weight = 1.0
  options.ema_decay = 0.999
