"""Everything on a laptop: tokenizer → pretrain → finetune on embedded 32×32 emoji.

bash launch/quickstart.sh
python -m imgtx_jax.main --config configs/quickstart.py --workdir runs/quickstart
"""

from imgtx_jax.config import defaults


def get_config():
  """The quickstart; configs/quickstart.py is also the smallest whole experiment to copy."""
  config = defaults.default()
  # Compute dtype, batch sizes and steps are chosen for two CPU cores.
  config.gpt.update(dict(width=128, depth=4, num_heads=4))
  config.gpt.order = "spread"
  config.remat = "full"  # on a CPU also faster: scanned layers store less

  # Flat areas and edges are what one looks at in drawings: no dots, no patch borders.
  config.tokenizer.gradient_weight = config.finetune.gradient_weight = 1.0
  config.sample.temperature = config.sample.top_p = 0.9  # unlikely codes leave seams
  config.tokenizer.steps = 600
  config.tokenizer.batch_size = 32
  config.pretrain.steps = 900
  config.pretrain.batch_size = 32
  config.pretrain.optimizer.learning_rate = 2e-3
  config.pretrain.ema_decay = 0.99
  # Larger patches than the generator's: cheaper, and no grid of its own that coincides with it.
  config.discriminator.update(dict(depth=3, patch=8, overlap=4))
  config.finetune.steps = 400
  config.finetune.batch_size = 32
  config.finetune.prefix_none_prob = 0.3
  config.finetune.prefix_full_prob = 0.4
  # What few codes leave open is guessed from the seed; the guesses are learned from samples of the
  # GPT, of which there must be many, and new ones.
  config.finetune.predictor_depth = 4
  config.finetune.bank_prob = 0.5
  config.finetune.bank_rows = 128
  config.generator.noise_dim = 16
  config.finetune.adversarial_weight = 0.1
  config.finetune.class_weight = 0.05
  config.finetune.optimizer.learning_rate = 1e-3
  config.finetune.optimizer.beta1 = 0.5
  config.finetune.optimizer.schedule = "cosine"
  config.finetune.optimizer.warmup_steps = 20
  config.finetune.gpt_optimizer.learning_rate = 5e-5
  config.adversary.optimizer.learning_rate = 1e-3
  config.adversary.penalty_weight = 0.05
  config.adversary.optimizer.schedule = "cosine"
  config.adversary.optimizer.warmup_steps = 20
  config.adversary.augment = ("translation",)
  config.finetune.ema_decay = 0.99
  config.finetune.refresh_steps = 50
  config.evaluate_steps = 200
  config.picture_steps = 200
  return config.lock()
