"""Fine-tuning what another work directory holds (imported weights, or a model trained there) on a
folder of your own images with other classes. The argument is that work directory.

  python -m imgtx_jax.convert llamagen --gpt c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --out runs/b256
  python -m imgtx_jax.main --config configs/from_workdir.py:runs/b256 --workdir runs/mine \\
    --config.data.path=DIR

Classes of the same name keep their row of the GPT's label table, others start from the null
class's; the discriminator and its heads start fresh. --config.rounds=2 adds a round of pretrain and
finetune on the new images. Figures: not run on published weights.
"""

import os

from imgtx_jax.errors import UserError
from imgtx_jax.training import workdir


def get_config(directory=""):
  """directory: a work directory that has finished tokenizer and pretrain."""
  if not directory:
    raise UserError("from_workdir.py needs a work directory: --config configs/from_workdir.py:DIR")
  directory = os.path.abspath(os.path.expanduser(directory))
  config = workdir.read(directory)[0].copy_and_resolve_references()
  with config.unlocked():
    config.init_from = directory
    config.stages = ("tokenizer", "pretrain", "finetune")
    config.rounds = 1
    config.data.source = "folder"
    config.data.path = ""
    config.data.crop = "random"
    config.data.flip = True
    if config.tokenizer_kind == "vqgan":  # no decoder to start the generator from
      config.finetune.adversarial_start_steps = config.finetune.steps // 4
  return config.lock()
