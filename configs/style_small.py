"""Style transfer on a laptop: a tokenizer and a stylizer from two folders of images, in an hour.

  python -m imgtx_jax.main --config configs/style_small.py:PHOTOS,PAINTINGS --workdir runs/style
  python -m imgtx_jax.main --config configs/style_small.py --workdir runs/style \\
    --config.data.path=PHOTOS --config.style.data.path=PAINTINGS,PAINTINGS,PHOTOS

Images of any size in folders and their subfolders, at least a few hundred of each. A path may be
several folders with commas, and one that is named twice counts twice: photos are styles too, where
paintings are few. Needs the extra "perceptual" (VGG16's weights).

28 minutes on one CPU core: 6 for the tokenizer, 22 for the style stage.
What came of it: docs/style_transfer.md.
"""

from imgtx_jax.config import defaults


def get_config(folders=""):
  """folders: CONTENTS,STYLES, a folder each."""
  config = defaults.default()
  config.stages = ("tokenizer", "style")
  contents, _, styles = folders.partition(",")
  config.data.update(dict(source="images", path=contents, image_size=96, crop="random"))
  # Of images of 256 pixels, crops from their own scale up: textures as a stylized image has them.
  config.data.update(dict(min_scale=0.14, max_scale=0.4))
  config.data.flip = True
  config.style.data.path = styles  # cropped alike

  # Patches of 8 pixels and windows of 4 patches: 512×512 pixels are 4,096 tokens, and should take
  # half a second on two cores.
  config.patch = 8
  config.window = 4
  config.encoder.update(dict(width=192, depth=1, num_heads=3))
  config.generator.update(dict(width=192, depth=5, num_heads=3, taps=()))
  config.generator.update(dict(head_channels=8, head_overlap=True))
  config.style_encoder.update(dict(width=192, depth=2, num_heads=3))
  config.remat = "full"
  config.discriminator.update(dict(patch=16, overlap=8, depth=3))
  # Latents that hold nearly all of a patch: the stylizer takes them before quantisation.
  config.quantizer.update(dict(code_dim=64, codebook_size=1024))
  config.tokenizer.continuous_prob = 0.9
  config.tokenizer.gradient_weight = 1.0
  config.tokenizer.update(dict(steps=1200, batch_size=4))
  config.tokenizer.optimizer.learning_rate = 1.5e-3

  # VGG16 takes most of a step: a small batch, crops of 64 of the 96 pixels for it, and many steps.
  config.style.update(dict(steps=1500, batch_size=4, shift=32))
  config.style.update(dict(content_weight=4.0, identity_weight=0.0))
  config.style.optimizer.update(dict(learning_rate=4e-4, warmup_steps=50))
  config.log_steps = 20
  config.evaluate_steps = 500
  config.evaluate_images = 48
  config.picture_steps = 100
  config.pictures = 8
  config.checkpoint_steps = 50
  return config.lock()
