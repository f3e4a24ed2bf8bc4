"""Everything on a laptop: tokenizer → pretrain → finetune on embedded 32×32 emoji.

bash launch/quickstart.sh
python -m imgtx_jax.main --config configs/quickstart.py --workdir runs/quickstart
"""

from imgtx_jax import config as defaults


def get_config():
  """The quickstart; configs/quickstart.py is also the smallest whole experiment to copy."""
  config = defaults.default()
  config.gpt.order = "spread"
  config.gpt.target_position = True
  return config.lock()
