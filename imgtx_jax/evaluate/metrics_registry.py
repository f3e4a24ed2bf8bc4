"""Computes metrics from stores of features.

A Metric has need(subject, settings) → why it cannot be computed, or ""; uses → the stores it
reads, as (set, extractor); compute(stores, subject, settings) → [Result].
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imgtx_jax.evaluate import feature_networks, nearest
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


def _need_samples(subject, least=1):
  if subject.samples is None:
    return "there are no samples: give --samples, or --workdir with a stage that draws"
  if subject.samples.count < least:
    return f"{subject.samples.count} samples, and it needs at least {least}: raise --num"
  return ""


def _need_reference(subject, least=2, images=False):
  if subject.reference is None:
    return "there is nothing to compare with: give --reference"
  if subject.reference.images is None:
    return "the reference is a file of statistics: name images" if images else ""
  if subject.reference.images.count < least:
    count = subject.reference.images.count
    return f"{count} reference images, and it needs at least {least}: give more"
  return ""


def _need_frechet(subject, settings, part="features"):
  missing = _need_samples(subject, 2) or _need_reference(subject)
  if (
    missing
    or part in subject.widths
    and (subject.reference.images or part in subject.reference.statistics)
  ):
    return missing
  if part not in subject.widths:
    return f"{subject.network.name} gives no {part} features: use --network=inception"
  return f"the reference's file has none of {subject.widths[part]} {part} features (mu_s, sigma_s)"


def _use_frechet(subject, part="features"):
  used = [("samples", "network")]
  return used if part in subject.reference.statistics else [*used, ("reference", "network")]


def _frechet(stores, subject, settings, part="features"):
  ours = stores["samples", "network"].moments(part)
  if part in subject.reference.statistics:
    statistics, others = subject.reference.statistics[part], "a file's statistics"
  else:
    theirs = stores["reference", "network"].moments(part)
    statistics, others = (theirs.mean, theirs.covariance), f"{theirs.count:,} references"
  label = subject.network.label
  name = label if part == "features" else f"s{label} (768 means)"
  value = frechet_distance(ours.mean, ours.covariance, *statistics)
  return [Result(name, value, None, f"{ours.count:,} samples, {others}")]


def _need_score(subject, settings):
  if "logits" not in subject.widths:
    return f"{subject.network.name} gives no class logits: use --network=inception"
  return _need_samples(subject, settings.splits)


def _score(stores, subject, settings):
  store = stores["samples", "network"]
  total = len(stores["samples", "examples"].read("row"))
  sums, start = ScoreSums(total, settings.splits), 0
  for logits in store.chunks("logits"):
    sums.add(logits, np.arange(start, start + len(logits)))
    start += len(logits)
  computed_on = f"{total:,} samples, {settings.splits} splits"
  return [Result(named("IS", subject.network), *sums.score(), computed_on)]


def _need_kernel(subject, settings):
  least = settings.kid_subset_size
  missing = _need_samples(subject, least) or _need_reference(subject, least, images=True)
  return f"{missing}, or lower --kid_subset_size" if "needs at least" in missing else missing


def _kernel(stores, subject, settings):
  mean, std = kernel_distance(
    *_both(stores),
    subsets=settings.kid_subsets,
    subset_size=settings.kid_subset_size,
    seed=settings.kid_seed,
  )
  computed_on = f"{settings.kid_subsets} subsets of {settings.kid_subset_size}"
  return [Result(named("KID", subject.network), mean, std, computed_on)]


def _need_neighbours(subject, settings):
  least = max(settings.neighbours, settings.density_neighbours) + 1
  return _need_samples(subject, least) or _need_reference(subject, least, images=True)


def _neighbours(stores, subject, settings):
  ours, theirs = _both(stores)
  found = precision_recall(
    ours,
    theirs,
    neighbours=settings.neighbours,
    density_neighbours=settings.density_neighbours,
  )
  computed_on = f"{len(ours):,} samples, {len(theirs):,} references"
  return [
    Result(named(name, subject.network), found[name], None, computed_on)
    for name in ("precision", "recall", "density", "coverage")
  ]


def _both(stores):
  """Returns features of samples and reference, at most MOST_ROWS of each."""
  return [
    stores[name, "network"].spread("features", MOST_ROWS) for name in ("samples", "reference")
  ]


# -- The model's own parts -------------------------------------------------------------------------


def _need_tokenizer(subject, settings):
  if subject.model is None:
    return "it measures a work directory's tokenizer: give --workdir"
  if "tokenizer" not in subject.model.results:
    return f"the {subject.model.stage.name} stage has no tokenizer"
  if subject.held_out is None or subject.held_out.count < 2:
    return "the work directory's data has under 2 held-out images"
  return ""


def _reconstruction(stores, subject, settings):
  before = stores["held_out", "network"].moments("features")
  store = stores["held_out", "tokenizer"]
  after = store.moments("features")
  value = frechet_distance(after.mean, after.covariance, before.mean, before.covariance)
  computed_on = f"{after.count:,} held-out images"
  results = [Result(f"r{subject.network.label}", value, None, computed_on)]
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


def _codes(stores, subject, settings):
  store = stores["held_out", "tokenizer"]
  size = subject.model.stage.tokenizer.quantizer.codebook_size
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


def _need_classes(subject, settings):
  missing = _need_samples(subject)
  if missing or judges(subject):
    return missing
  if not subject.samples.labelled:
    return "the samples have no labels"
  if subject.model is None:
    return "no classifier of these classes: give --workdir, whose discriminator has a class layer"
  classifier = feature_networks.classifier_reason(subject.model.class_names)
  return f"neither finetune nor gan, whose discriminators have a class layer, and {classifier}"


def judges(subject):
  """Returns the networks that can classify the samples: "discriminator", "classifier"."""
  samples, model = subject.samples, subject.model
  if samples is None or model is None or not samples.labelled:
    return []
  own_size = tuple(samples.size) == (model.config.data.image_size,) * 2
  judging = model.draws and hasattr(model.stage, "adversary")
  found = ["discriminator"] if judging and own_size else []
  if not feature_networks.classifier_reason(model.class_names):
    found.append("classifier")
  return found


def _classes(stores, subject, settings):
  labels = stores["samples", "examples"].read("label")
  names = {
    "discriminator": "class accuracy (the discriminator's class layer)",
    "classifier": "class accuracy (EfficientNet-lite0, ImageNet)",
  }
  results = []
  for judge in judges(subject):
    store = stores["samples", judge]
    if judge == "discriminator":
      predicted = store.read("predicted")
    else:
      predicted = np.concatenate([logits.argmax(axis=1) for logits in store.chunks("logits")])
    accuracy = float(np.mean(predicted == labels))
    results.append(Result(names[judge], accuracy, None, f"{len(labels):,} samples"))
  return results


def _use(*pairs):
  return lambda subject: list(pairs)


_BOTH = _use(("samples", "network"), ("reference", "network"))
METRICS = {
  "frechet": Metric(_need_frechet, _use_frechet, _frechet),
  "sfid": Metric(
    lambda subject, settings: _need_frechet(subject, settings, "spatial"),
    lambda subject: _use_frechet(subject, "spatial"),
    lambda stores, subject, settings: _frechet(stores, subject, settings, "spatial"),
  ),
  "inception_score": Metric(_need_score, _use(("samples", "network")), _score),
  "kid": Metric(_need_kernel, _BOTH, _kernel),
  "precision_recall": Metric(_need_neighbours, _BOTH, _neighbours),
  "class_accuracy": Metric(
    _need_classes, lambda subject: [("samples", judge) for judge in judges(subject)], _classes
  ),
  "reconstruction": Metric(
    _need_tokenizer, _use(("held_out", "network"), ("held_out", "tokenizer")), _reconstruction
  ),
  "codes": Metric(_need_tokenizer, _use(("held_out", "tokenizer")), _codes),
  "nearest": Metric(
    lambda subject, settings: _need_samples(subject) or nearest.need(subject),
    nearest.uses,
    lambda stores, subject, settings: [Result(*row) for row in nearest.measure(stores, subject)],
  ),
}
