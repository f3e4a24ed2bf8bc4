"""The audit of a trained model, as one self-contained page and as JSON.

It shows which classes the model renders badly, favours or drops, and on what its discriminator and
class head base their answers.

The discriminator's logit is relativistic: it has no zero and is compared within a label only.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

from imgtx_jax.data.sources import open_source
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import feature_networks
from imgtx_jax.evaluate.audit import html_page, probes, sample_groups
from imgtx_jax.evaluate.audit.summary import summarize
from imgtx_jax.io import outputs
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.metrics import classification as class_metrics
from imgtx_jax.metrics import small_sample
from imgtx_jax.reporting import report
from imgtx_jax.sampling.sampler import Sampler, check_prefix, load_judging_stage
from imgtx_jax.training import data_record

HELD_OUT = 1000  # held-out images, or as many as samples where that is more
_SPLITS = ("train", "validation")


def run_audit(
  directory,
  config,
  class_names,
  *,
  num,
  seed,
  prefix,
  options,
  network,
  batch_size,
  out,
  checkpoint="last",
):
  """Audits a work directory's last stage that trained a discriminator.

  Args:
    directory, config, class_names: of the work directory.
    num, seed: number of samples with a label, all classes in turn, and as many without one.
    prefix: the dial k; None for all codes.
    options: SamplingOptions.
    network: a FeatureNetwork or its name. Without weights, or if it is None, metrics on features
      are skipped, and the page says so.
    batch_size: number of images at a time.
    out: the HTML file ("": audit.html in the work directory); the numbers go beside it as .json.
    checkpoint: "last" or "best" of the stage.

  Returns audit["summary"] and the paths of both files: {"worst", "ranked_by", "biases", "page",
  "json"}. Raises UserError if neither finetune nor gan has finished, or a number is out of range.
  """
  began = time.monotonic()
  page, numbers = _paths(out or Path(directory) / "audit.html")
  if num < 2 * len(class_names):
    raise UserError(
      f"--num={num} is under {2 * len(class_names)}, two samples for each of the "
      f"{len(class_names)} classes; ask for more"
    )
  stage, results = load_judging_stage(directory, config, class_names, "the audit", checkpoint)
  prefix = stage.num_codes if prefix is None else prefix
  check_prefix(stage, prefix)
  network, reason = _feature_network(network, config)
  examiner = sample_groups.Examiner(stage, results, network, batch_size)
  sampler = Sampler(stage, results, options, prefix=prefix, seed=seed, batch_size=batch_size)
  pair = [open_source(config.data.source, split=s, path=config.data.path) for s in _SPLITS]
  data_record.check_classes(directory, class_names, pair[0].class_names)
  sets, data_counts = _examine_sets(examiner, sampler, config, len(class_names), num, pair)
  audit = {
    "protocol": _protocol(directory, sets, network, reason, options)
    | {"checkpoint": checkpoint, "step": int(results[stage.name]["step"])}
    | {"num": num, "seed": seed, "prefix": prefix, "num_codes": stage.num_codes}
  }
  audit |= _class_results(sets, class_names, data_counts, seed)
  audit["stability"] = probes.stability(examiner, sets["held_out"], sets["samples"])
  shown = {"real": sets["held_out"], "samples": sets["samples"]}
  audit["saliency"], pictures = probes.saliency_maps(examiner, shown, class_names)
  audit["summary"] = summarize(audit)
  audit["protocol"]["seconds"] = time.monotonic() - began
  pictures["corrupted"] = sets["held_out"].images[0]
  _write(page, numbers, Path(directory).resolve().name, audit, pictures)
  return audit["summary"] | {"page": str(page), "json": str(numbers)}


def _write(page, numbers, title, audit, pictures):
  """Writes the page and its numbers as JSON."""
  text = json.dumps(report.finite(audit), indent=1, ensure_ascii=False, allow_nan=False)
  write_atomically(numbers, text.encode())
  write_atomically(page, html_page.render(title, audit, pictures).encode())


def _paths(out):
  """Returns the paths of the page and of its JSON."""
  out = Path(out)
  outputs.check_file("--out", str(out), (".html", ".htm"))
  return out, out.with_suffix(".json")


def _feature_network(network, config):
  """(FeatureNetwork, "") or (None, why there is none)."""
  if network is None:
    return None, "no feature network was asked for"
  if isinstance(network, str):
    try:
      network = feature_networks.load(network)
    except UserError as error:
      return None, str(error)
  if config.data.image_size < network.smallest:
    return None, f"{network.name} needs images of {network.smallest} pixels or more"
  return network, ""


def _examine_sets(examiner, sampler, config, classes, num, pair):
  """The ImageSets samples, unconditional, training and held_out; and the training images of each
  class [K] (an estimate in proportion where the source cannot count them). pair: the sources of
  training and held-out images."""
  data, (training, held_out) = config.data, pair

  def examine(name, chunks):
    began = time.monotonic()
    image_set = examiner.examine(chunks)
    print(f"{name}: {len(image_set)} images in {time.monotonic() - began:.1f} s", flush=True)
    return image_set

  labels = (np.arange(num) % classes).astype(np.int32)
  none = np.full(num, classes, np.int32)
  # Halves of the real images stand against the samples: twice as many are of use.
  indices, counts = sample_groups.spread_over_classes(training, 2 * -(-num // classes), classes)
  held = sample_groups.spread(held_out, max(num, HELD_OUT))
  size = examiner.batch_size
  sets = {
    "samples": examine("samples of all classes", sample_groups.drawn(sampler, labels, 0)),
    "unconditional": examine("samples without a label", sample_groups.drawn(sampler, none, num)),
    "training": examine("training images", sample_groups.read(training, indices, data, size)),
    "held_out": examine("held-out images", sample_groups.read(held_out, held, data, size)),
  }
  if counts is None:
    counts = np.bincount(sets["training"].labels, minlength=classes)
  return sets, counts


def _class_results(sets, class_names, data_counts, seed):
  """{"confusion", "unconditional": of the class head, "by_features", "classes"} of audit.json."""
  held_out, samples = sets["held_out"], sets["samples"]
  head = _sorted(sets, class_names, data_counts, lambda image_set: image_set.answer)
  by_features = None
  if samples.features is not None:
    training = sets["training"]
    predict = class_metrics.linear_discriminant(
      training.features, training.labels, len(class_names)
    )
    by_features = _sorted(
      sets, class_names, data_counts, lambda image_set: predict(image_set.features)
    )
  real, own = (np.array(head["confusion"][key]) for key in ("real", "samples"))
  rows = [
    {
      "name": name,
      "data_count": int(data_counts[i]),
      "held_out": int(real[i].sum()),
      "samples": int(own[i].sum()),
      "accuracy_real": _ratio(real[i, i], real[i].sum()),
      "accuracy_samples": _ratio(own[i, i], own[i].sum()),
      "auc": class_metrics.roc_auc(
        held_out.logit[held_out.labels == i], samples.logit[samples.labels == i]
      ),
      "distance": _distance(samples, sets["training"], i, seed),
    }
    for i, name in enumerate(class_names)
  ]
  return head | {"by_features": by_features, "classes": rows}


def _sorted(sets, class_names, data_counts, answers):
  """{"confusion": {"names", "real", "samples", "mean_accuracy"}, "unconditional"} by one
  classifier: answers(ImageSet) → int [n]."""
  count = len(class_names)
  counts = {
    key: class_metrics.confusion(sets[name].labels, answers(sets[name]), count)
    for key, name in (("real", "held_out"), ("samples", "samples"))
  }
  fractions = data_counts / max(data_counts.sum(), 1)
  unlabelled = np.bincount(answers(sets["unconditional"]), minlength=count)
  rows = class_metrics.class_preferences(unlabelled, fractions, counts["real"])
  confusion = {"names": list(class_names)} | {key: c.tolist() for key, c in counts.items()}
  confusion["mean_accuracy"] = class_metrics.mean_accuracy(counts["real"])
  return {
    "confusion": confusion,
    "unconditional": [{"name": name} | row for name, row in zip(class_names, rows, strict=True)],
  }


def _distance(samples, real, label, seed):
  """Compares a class's samples with halves of its real images; None without enough features."""
  if samples.features is None:
    return None
  ours, theirs = (s.features[s.labels == label] for s in (samples, real))
  if not len(ours) or not len(theirs):
    return None
  return small_sample.compare_with_halves(ours, theirs, seed=seed)


def _ratio(part, whole):
  return float(part / whole) if whole else None


def _protocol(directory, sets, network, reason, options):
  """Returns what must be told with the numbers."""
  told = None
  if network is not None:
    told = {key: getattr(network, key) for key in ("name", "label", "resize", "weights_sha256")}
    told["width"] = int(sets["samples"].features.shape[1])
  return {
    "workdir": str(directory),
    "network": told,
    "skipped": reason,
    "splits": small_sample.SPLITS,
    "neighbours": small_sample.NEIGHBOURS,
    "images": {name: len(image_set) for name, image_set in sets.items()},
    "kept": {name: len(sets[name].images) for name in ("held_out", "samples")},
    "sampling": dataclasses.asdict(options),
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }
