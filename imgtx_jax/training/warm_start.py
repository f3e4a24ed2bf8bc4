"""Starting from another work directory: its tokenizer and GPT become finished stages of this one.

config.init_from names the directory. It holds imported weights (imgtx_jax.convert) or networks
that were trained there; they must be the same networks, and may be of other classes.
"""

import numpy as np

from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError
from imgtx_jax.training import workdir

STAGES = ("tokenizer", "pretrain")
# Keys that begin so describe the adopted networks and must be equal.
_TOKENIZER = ("patch", "window", "data.image_size", "tokenizer_kind", "encoder.", "quantizer.")
_GPT = ("gpt.width", "gpt.depth", "gpt.num_heads", "gpt.mlp_dim", "gpt.order")
# The decoder, which fine-tuning starts from.
_DECODER = (
  *("generator.width", "generator.depth", "generator.num_heads", "generator.mlp_dim"),
  *("generator.qk_norm", "generator.taps", "generator.head_channels", "generator.head_overlap"),
)


def adopt(config, directory, class_names):
  """Copies the stages tokenizer and pretrain of config.init_from into a work directory.

  Does nothing if they are finished there. Raises UserError if config.init_from has not finished
  them, or has other networks.
  """
  tasks = [workdir.StageRun(1, stage) for stage in STAGES]
  if all(workdir.is_finished(directory, task) for task in tasks):
    return
  source = config.init_from
  theirs, their_names = workdir.read(source)
  _check(config, theirs, source)
  done = workdir.finished(theirs, source)
  missing = [stage for stage in STAGES if stage not in {task.stage for task in done}]
  if missing:
    raise UserError(
      f"config.init_from={source} has not finished {', '.join(missing)}; finish it there, or "
      "convert published weights (python -m imgtx_jax.convert)"
    )
  results = workdir.results(source, done, theirs.stage_checkpoint)
  pretrain = results["pretrain"]
  # Fine-tuning, where there was one, has trained the GPT further.
  gpt = results.get("finetune", pretrain)["ema"]["gpt"]
  gpt["label"]["embedding"] = label_table(gpt["label"]["embedding"], their_names, class_names)
  origin = {"adopted": str(source)}
  workdir.write_finished(directory, "tokenizer", results["tokenizer"]["ema"], {}, origin)
  workdir.write_finished(directory, "pretrain", {"gpt": gpt}, pretrain["variables"], origin)
  known = len(set(their_names) & set(class_names))
  print(
    f"adopted tokenizer and pretrain of {source}; {known} of {len(class_names)} classes were known "
    "there by name, the others start from the null class",
    flush=True,
  )


def label_table(table, their_names, class_names):
  """Returns label embeddings [K + 1, D] for other classes, given a table [K' + 1, D].

  A class of the same name keeps its row; a new one gets a copy of the last row, the null class's.
  """
  rows = [
    their_names.index(name) if name in their_names else len(their_names) for name in class_names
  ]
  return np.asarray(table)[[*rows, len(their_names)]]


def _check(config, theirs, source):
  """Raises UserError with the first key in which the networks differ."""
  keys = (*_TOKENIZER, "vqgan.", *_GPT)
  if theirs.tokenizer_kind == "transformer":
    keys += _DECODER
  if configs.predicts_places(config) != configs.predicts_places(theirs):
    keys += ("pretrain.permute_",)
  ours, others = configs.flatten(config), configs.flatten(theirs)
  for key in sorted(others):
    if key.startswith(keys) and ours[key] != others[key]:
      raise UserError(
        f"config.{key} is {ours[key]!r}, and {others[key]!r} in config.init_from={source}; "
        f"take its config: --config configs/from_workdir.py:{source}"
      )
