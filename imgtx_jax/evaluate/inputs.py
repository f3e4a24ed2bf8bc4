"""What is evaluated: a trained model, its samples or those of a file, and what to compare with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.data import sources
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import extractors, feature_networks, image_sets
from imgtx_jax.evaluate.reference import Reference
from imgtx_jax.sampling.sampler import SAMPLING_STAGES, Sampler, load_stage
from imgtx_jax.training import data_record, workdir

LABELS = ("balanced", "data")


@dataclasses.dataclass
class Model:
  """A work directory's last finished stage (or the one asked for) and the results up to it."""

  directory: str
  config: Any
  class_names: list
  stage: Any
  results: dict

  @property
  def draws(self):
    """Returns whether it draws images: a tokenizer alone does not."""
    return bool(self.stage.draws_with)


@dataclasses.dataclass
class EvaluationInputs:
  """What is evaluated; absent image sets are None.

  widths: {part: D} of the network's features.
  """

  network: feature_networks.FeatureNetwork
  widths: dict
  model: Model | None = None
  samples: image_sets.ImageSet | None = None
  reference: Reference | None = None
  held_out: image_sets.ImageSet | None = None
  training: image_sets.ImageSet | None = None


def load_model(directory, stage="", checkpoint="last"):
  """Returns the Model of a work directory.

  stage: "" for the last finished one. checkpoint: "last" or "best" of that stage.
  """
  config, class_names = workdir.read(directory)
  only = (stage,) if stage else ("tokenizer", *SAMPLING_STAGES)
  built, results = load_stage(directory, config, class_names, only, checkpoint)
  return Model(directory, config, class_names, built, results)


def widths(network, size=None):
  """Returns {part: width} of a FeatureNetwork's outputs for images of a size; does not run it."""
  size = size or (max(network.smallest, 32),) * 2
  image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
  outputs = jax.eval_shape(network.apply, network.params, image)
  return {part: x.shape[-1] for part, x in outputs.items()}


def draw_samples(model, options, *, count, prefix, seed, rule, batch_size):
  """Returns the ImageSet of `count` images that a Model draws at prefix k by SamplingOptions.

  rule: of the labels: "balanced" (the classes in turn), "data" (their frequencies in the training
  data) or "": "data" where the labels are known without reading the images, else "balanced".
  """
  labels, rule = draw_labels(model, count, rule, seed)
  sampler = Sampler(
    model.stage, model.results, options, prefix=prefix, seed=seed, batch_size=batch_size
  )
  size = (model.config.data.image_size,) * 2
  fingerprint = {
    "kind": "drawn",
    "stage": model.stage.name,
    "step": int(model.results[model.stage.name]["step"]),
    "weights": extractors.digest(model.stage.drawing_params(model.results)),
    "networks": extractors.hyperparameters(model.config),
    "prefix": prefix,
    "of_codes": model.stage.num_codes,
    "sampling": dataclasses.asdict(options),
    "labels": rule,
    "classes": len(model.class_names),
    "seed": seed,
    "image_number": "0 … count − 1, folded into the seed",
  }
  return image_sets.DrawnImages(sampler, labels, size, fingerprint)


def draw_labels(model, count, rule, seed):
  """Returns (labels int32 [count], the rule in words)."""
  classes = len(model.class_names)
  given = None if rule == "balanced" else data_labels(model, rule == "data")
  if given is None:
    return np.arange(count, dtype=np.int32) % classes, "balanced: the classes in turn"
  # Quantiles of the sorted labels: every class within one of its proportion.
  spread = np.sort(given)[np.arange(count) * len(given) // count]
  order = np.random.default_rng(seed).permutation(count)
  return spread[order].astype(np.int32), "data: the training data's frequencies, shuffled"


def data_labels(model, needed):
  """Returns the labels int [n] of a Model's training data, None if only reading images would tell.

  needed: raise a UserError instead of returning None.
  """
  config = model.config
  try:
    source = sources.open_source(config.data.source, split="train", path=config.data.path)
    data_record.check_classes(model.directory, model.class_names, source.class_names)
  except UserError:
    if needed:
      raise
    return None
  labels = getattr(source, "labels", None)
  if labels is None and needed:
    raise UserError(
      f"--labels=data needs labels that are known before the images are read, and those of "
      f"{config.data.source} are not; use --labels=balanced"
    )
  return labels
