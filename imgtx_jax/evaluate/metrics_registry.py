"""Computes metrics from stores of features.

A Metric has need(inputs, settings) → why it cannot be computed, or ""; uses → the stores it
reads, as (set, extractor); compute(stores, inputs, settings) → [Result].
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imgtx_jax.evaluate import extractors, nearest
from imgtx_jax.metrics import codebook as code_metrics
from imgtx_jax.metrics.frechet import frechet_distance
from imgtx_jax.metrics.inception_score import ScoreSums
from imgtx_jax.metrics.kid import kernel_distance
from imgtx_jax.metrics.precision_recall import precision_recall

MOST_ROWS = 50_000  # of a set, for metrics that hold all features: spread evenly


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the metrics; nearest: how many samples the picture shows."""

  kid_subsets: int = 100
  kid_subset_size: int = 1000
  kid_seed: int = 2020
  splits: int = 10
  neighbours: int = 3
  density_neighbours: int = 5
  nearest: int = 8


class Result(NamedTuple):
  """One value of a metric.

  std: over subsets or splits, or None. computed_on: in words.
  """

  name: str
  value: float
  std: float | None = None
  computed_on: str = ""


class Metric(NamedTuple):
  """How a metric is computed; see the module."""

  need: Callable
  uses: Callable
  compute: Callable


def named(name, network):
  """Returns a result's name with its network; "KID" alone is that of FID's published weights."""
  return name if network.label == "FID" else f"{name}-{network.label.removeprefix('FD-')}"


# -- Samples against a reference -------------------------------------------------------------------


def _need_samples(inputs, least=1):
  if inputs.samples is None:
    return "there are no samples: give --samples, or --workdir with a stage that draws"
  if inputs.samples.count < least:
    return f"{inputs.samples.count} samples, and it needs at least {least}: raise --num"
  return ""


def _need_reference(inputs, least=2, images=False):
  if inputs.reference is None:
    return "there is nothing to compare with: give --reference"
  if inputs.reference.images is None:
    return "the reference is a file of statistics: name images" if images else ""
  if inputs.reference.images.count < least:
    count = inputs.reference.images.count
    return f"{count} reference images, and it needs at least {least}: give more"
  return ""


def _need_frechet(inputs, settings, part="features"):
  missing = _need_samples(inputs, 2) or _need_reference(inputs)
  if (
    missing
    or part in inputs.widths
    and (inputs.reference.images or part in inputs.reference.statistics)
  ):
    return missing
  if part not in inputs.widths:
    return f"{inputs.network.name} gives no {part} features: use --network=inception"
  return f"the reference's file has none of {inputs.widths[part]} {part} features (mu_s, sigma_s)"


def _use_frechet(inputs, part="features"):
  used = [("samples", "network")]
  return used if part in inputs.reference.statistics else [*used, ("reference", "network")]


def _frechet(stores, inputs, settings, part="features"):
  ours = stores["samples", "network"].moments(part)
  if part in inputs.reference.statistics:
    statistics, others = inputs.reference.statistics[part], "a file's statistics"
  else:
    theirs = stores["reference", "network"].moments(part)
    statistics, others = (theirs.mean, theirs.covariance), f"{theirs.count:,} references"
  label = inputs.network.label
  name = label if part == "features" else f"s{label} (768 means)"
  value = frechet_distance(ours.mean, ours.covariance, *statistics)
  return [Result(name, value, None, f"{ours.count:,} samples, {others}")]


def _need_score(inputs, settings):
  if "logits" not in inputs.widths:
    return f"{inputs.network.name} gives no class logits: use --network=inception"
  return _need_samples(inputs, settings.splits)


def _score(stores, inputs, settings):
  store = stores["samples", "network"]
  total = len(stores["samples", "examples"].read("row"))
  sums, start = ScoreSums(total, settings.splits), 0
  for logits in store.chunks("logits"):
    sums.add(logits, np.arange(start, start + len(logits)))
    start += len(logits)
  computed_on = f"{total:,} samples, {settings.splits} splits"
  return [Result(named("IS", inputs.network), *sums.score(), computed_on)]


def _need_kernel(inputs, settings):
  least = settings.kid_subset_size
  missing = _need_samples(inputs, least) or _need_reference(inputs, least, images=True)
  return f"{missing}, or lower --kid_subset_size" if "needs at least" in missing else missing


def _kernel(stores, inputs, settings):
  mean, std = kernel_distance(
    *_both(stores),
    subsets=settings.kid_subsets,
    subset_size=settings.kid_subset_size,
    seed=settings.kid_seed,
  )
  computed_on = f"{settings.kid_subsets} subsets of {settings.kid_subset_size}"
  return [Result(named("KID", inputs.network), mean, std, computed_on)]


def _need_neighbours(inputs, settings):
  least = max(settings.neighbours, settings.density_neighbours) + 1
  return _need_samples(inputs, least) or _need_reference(inputs, least, images=True)


def _neighbours(stores, inputs, settings):
  ours, theirs = _both(stores)
  values = precision_recall(
    ours,
    theirs,
    neighbours=settings.neighbours,
    density_neighbours=settings.density_neighbours,
  )
  computed_on = f"{len(ours):,} samples, {len(theirs):,} references"
  return [
    Result(named(name, inputs.network), values[name], None, computed_on)
    for name in ("precision", "recall", "density", "coverage")
  ]


def _both(stores):
  """Returns features of samples and reference, at most MOST_ROWS of each."""
  return [
    stores[name, "network"].spread("features", MOST_ROWS) for name in ("samples", "reference")
  ]


# -- The model's own parts -------------------------------------------------------------------------


def _need_tokenizer(inputs, settings):
  if inputs.model is None:
    return "it measures a work directory's tokenizer: give --workdir"
  if "tokenizer" not in inputs.model.results:
    return f"the {inputs.model.stage.name} stage has no tokenizer"
  if inputs.held_out is None or inputs.held_out.count < 2:
    return "the work directory's data has under 2 held-out images"
  return ""


def _reconstruction(stores, inputs, settings):
  before = stores["held_out", "network"].moments("features")
  store = stores["held_out", "tokenizer"]
  after = store.moments("features")
  value = frechet_distance(after.mean, after.covariance, before.mean, before.covariance)
  computed_on = f"{after.count:,} held-out images"
  results = [Result(f"r{inputs.network.label}", value, None, computed_on)]
  for part, name in (
    ("psnr", "PSNR (dB)"),
    ("ssim", "SSIM"),
    ("ms_ssim", "MS-SSIM"),
    ("lpips", "LPIPS (vgg)"),
  ):
    values = store.read(part)
    if len(values):
      results.append(Result(name, float(values.mean(dtype=np.float64)), None, computed_on))
  return results


def _codes(stores, inputs, settings):
  store = stores["held_out", "tokenizer"]
  size = inputs.model.stage.tokenizer.quantizer.codebook_size
  counts = sum(np.bincount(chunk.reshape(-1), minlength=size) for chunk in store.chunks("codes"))
  computed_on = f"{counts.sum():,} codes of held-out images"
  results = [
    Result("code usage", code_metrics.usage(counts), None, computed_on),
    Result("code perplexity", code_metrics.perplexity(counts), None, computed_on),
  ]
  bits = store.read("bits")
  if len(bits):
    mean = float(bits.mean(dtype=np.float64))
    results.append(Result("bits per code (GPT)", mean, None, computed_on))
  return results


def _need_classes(inputs, settings):
  missing = _need_samples(inputs)
  if missing or judges(inputs):
    return missing
  if not inputs.samples.labelled:
    return "the samples have no labels"
  if inputs.model is None:
    return "no classifier of these classes: give --workdir, whose discriminator has a class layer"
  classifier = extractors.classifier_reason(inputs.model.class_names)
  return f"neither finetune nor gan, whose discriminators have a class layer, and {classifier}"


def judges(inputs):
  """Returns the networks that can classify the samples: "discriminator", "classifier"."""
  samples, model = inputs.samples, inputs.model
  if samples is None or model is None or not samples.labelled:
    return []
  own_size = tuple(samples.size) == (model.config.data.image_size,) * 2
  judging = model.draws and hasattr(model.stage, "adversary")
  names = ["discriminator"] if judging and own_size else []
  if not extractors.classifier_reason(model.class_names):
    names.append("classifier")
  return names


def _classes(stores, inputs, settings):
  labels = stores["samples", "examples"].read("label")
  names = {
    "discriminator": "class accuracy (the discriminator's class layer)",
    "classifier": "class accuracy (EfficientNet-lite0, ImageNet)",
  }
  results = []
  for judge in judges(inputs):
    store = stores["samples", judge]
    if judge == "discriminator":
      predicted = store.read("predicted")
    else:
      predicted = np.concatenate([logits.argmax(axis=1) for logits in store.chunks("logits")])
    accuracy = float(np.mean(predicted == labels))
    results.append(Result(names[judge], accuracy, None, f"{len(labels):,} samples"))
  return results


def _use(*pairs):
  return lambda inputs: list(pairs)


_BOTH = _use(("samples", "network"), ("reference", "network"))
METRICS = {
  "frechet": Metric(_need_frechet, _use_frechet, _frechet),
  "sfid": Metric(
    lambda inputs, settings: _need_frechet(inputs, settings, "spatial"),
    lambda inputs: _use_frechet(inputs, "spatial"),
    lambda stores, inputs, settings: _frechet(stores, inputs, settings, "spatial"),
  ),
  "inception_score": Metric(_need_score, _use(("samples", "network")), _score),
  "kid": Metric(_need_kernel, _BOTH, _kernel),
  "precision_recall": Metric(_need_neighbours, _BOTH, _neighbours),
  "class_accuracy": Metric(
    _need_classes, lambda inputs: [("samples", judge) for judge in judges(inputs)], _classes
  ),
  "reconstruction": Metric(
    _need_tokenizer, _use(("held_out", "network"), ("held_out", "tokenizer")), _reconstruction
  ),
  "codes": Metric(_need_tokenizer, _use(("held_out", "tokenizer")), _codes),
  "nearest": Metric(
    lambda inputs, settings: _need_samples(inputs) or nearest.need(inputs),
    nearest.uses,
    lambda stores, inputs, settings: [Result(*row) for row in nearest.measure(stores, inputs)],
  ),
}
