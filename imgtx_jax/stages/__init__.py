"""The stages of an experiment, one file a recipe. STAGES maps the names of config.stages to them;
base.py holds what all share, builders.py the networks, adversarial.py the step against a
discriminator."""

from imgtx_jax.stages.finetune import FinetuneStage
from imgtx_jax.stages.gan import GanStage
from imgtx_jax.stages.pretrain import PretrainStage
from imgtx_jax.stages.style import StyleStage
from imgtx_jax.stages.tokenizer import TokenizerStage

STAGES = {s.name: s for s in (TokenizerStage, PretrainStage, FinetuneStage, GanStage, StyleStage)}


def build(name, config, classes):
  """Builds the stage of that name; its hyperparameters are unpacked here, once."""
  return STAGES[name](config, classes)
