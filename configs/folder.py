"""Your own images: a folder with one folder a class. The argument is the image size.

  python -m imgtx_jax.main --config configs/folder.py:64 --workdir runs/mine \\
    --config.data.path=DIR

DIR holds train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg alone: then 5 % are held out. The
networks are those of a laptop; widths, layers and steps are keys like any other. Figures: not run.
"""

from imgtx_jax.config import defaults
from imgtx_jax.errors import UserError


def get_config(size="64"):
  """size: of the square images in pixels, a multiple of 8."""
  if not size.isdigit() or int(size) < 16 or int(size) % 8:
    raise UserError(f"image size {size!r} is not a multiple of 8 from 16 up; write folder.py:64")
  config = defaults.default()
  config.data.source = "folder"
  config.data.image_size = int(size)
  config.data.crop = "random"
  config.data.flip = True
  config.patch = config.discriminator.patch = max(4, int(size) // 64 * 8)
  config.discriminator.overlap = config.patch // 2
  config.quantizer.codebook_size = 1024
  config.gpt.order = "spread"
  config.remat = "full"
  for stage, steps in (("tokenizer", 5000), ("pretrain", 5000), ("finetune", 3000)):
    config[stage].steps = steps
    config[stage].batch_size = 32
  return config.lock()
