"""One evaluation: gathers features of every set that its metrics need, computes, and writes down
how. Every process gathers its share in folders that all share; the first one computes, and the
others wait for it. What goes wrong in one of them stops all."""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

import imgtx_jax
from imgtx_jax.cli.command import Interrupted
from imgtx_jax.cli.progress import Display
from imgtx_jax.cli.stop_signals import StopSignals
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError, one_of
from imgtx_jax.evaluate import (
  extractors,
  feature_networks,
  feature_store,
  image_sets,
  nearest,
  reference,
)
from imgtx_jax.evaluate.metrics_registry import METRICS
from imgtx_jax.io.atomic import write_atomically

_DISTINCT = 0.9  # the fraction of samples that differ from each other, below which a run says so
_TITLES = {"held_out": "held-out images", "training": "training images"}


def choose(asked, subject, settings, among=tuple(METRICS)):
  """Returns (the names of metrics to compute, {name: why it was skipped}).

  asked: names, or () for all of `among` that can be had; UserError if one asked for cannot.
  """
  for name in asked:
    one_of("--metrics", name, METRICS)
  reasons = {n: METRICS[n].need(subject, settings) for n in asked or among}
  skipped = {name: reason for name, reason in reasons.items() if reason}
  for name in asked:
    if name in skipped:
      raise UserError(f"--metrics={name} cannot be had: {skipped[name]}")
  if len(skipped) == len(reasons):
    raise UserError(
      f"nothing can be measured; {'; '.join(f'{n}: {r}' for n, r in skipped.items())}"
    )
  return [name for name in reasons if name not in skipped], skipped


def check_sizes(subject):
  """Raises UserError if samples and reference differ in size and the network sees it."""
  ours, theirs = subject.samples, subject.reference and subject.reference.images
  if ours and theirs and tuple(ours.size) != tuple(theirs.size):
    if subject.network.resize == "none":
      raise UserError(
        f"samples are {image_sets.sides(ours.size)} and the reference "
        f"{image_sets.sides(theirs.size)}, and {subject.network.name} does not resize: make them "
        "one size, or have --image_size crop and resize folders"
      )


class Evaluator:
  """Computes metrics of Subjects of one network and one model; what is compiled for one serves the
  next. The same images, network and versions find the features of an earlier run in the folders.

  out: the folder of this evaluation; shared: where features of references and training data go;
  batch_size: images at a time; it does not matter for results.
  """

  def __init__(self, network, settings, *, out, shared, batch_size, report=None):
    self.network, self.settings = network, settings
    self.out, self.shared = Path(out), Path(shared)
    self.batch_size = min(batch_size, feature_store.SHARD)
    self.versions = {"imgtx_jax": imgtx_jax.__version__, "jax": jax.__version__}
    self.report = report
    self._extractors, self._said = {}, set()

  def run(self, subject, asked=(), *, among=tuple(METRICS), save_npz="", save_stats=""):
    """The evaluation as a dict: results, protocol, skipped and timing; None in other processes
    than the first. asked, among: see choose. Writes the picture of nearest images and the files
    asked for."""
    check_sizes(subject)
    metrics, skipped = choose(asked, subject, self.settings, among)
    for name, reason in skipped.items():
      self._say(f"skipped {name}: {reason}")
    used = [pair for name in metrics for pair in METRICS[name].uses(subject)]
    if subject.samples is not None and (save_npz or any(s == "samples" for s, _ in used)):
      used += [("samples", "examples")] + [("samples", "images")] * bool(save_npz)
    elif save_npz:
      raise UserError("--save_npz writes samples, and there are none")
    if save_stats:
      used.append(("samples", "network"))
    stores = self._gather(subject, used)
    try:
      if jax.process_index():
        return None
      self._warn_of_repeats(stores)
      found = self._compute(subject, metrics, stores, skipped)
      self._save(stores, subject, save_npz, save_stats)
      return found
    finally:
      processes.gather(b"the first process has computed")

  def _warn_of_repeats(self, stores):
    """Says so where the samples hold the same images again and again, as a collapsed model's do."""
    if ("samples", "examples") in stores:
      digests = stores["samples", "examples"].read("digest")
      distinct = len(np.unique(digests))
      if distinct < _DISTINCT * len(digests):
        self._say(f"warning: the {len(digests)} samples are {distinct} distinct images")

  def _compute(self, subject, metrics, stores, skipped):
    """Returns what run returns, from filled stores."""
    results = {}
    for name in metrics:
      for result in METRICS[name].compute(stores, subject, self.settings):
        results[result.name] = {"metric": name, **result._asdict()}
    if "nearest" in metrics:
      path = self.out / "nearest.png"
      nearest.write_picture(path, stores, subject, self.settings.nearest, self.batch_size)
    return {
      "results": results,
      "skipped": skipped,
      "protocol": self._protocol(subject, metrics, stores),
      "timing": self._timing(stores),
    }

  # -- Features ------------------------------------------------------------------------------------

  def _gather(self, subject, used):
    """Returns {(set, extractor): FeatureStore} of all pairs, filled."""
    stores = {}
    for title in ("samples", "reference", "training", "held_out"):
      names = list(dict.fromkeys(name for where, name in used if where == title))
      if not names:
        continue
      images = getattr(subject, title)
      images = images.images if title == "reference" else images
      extractors = [self._extractor(name, subject) for name in names]
      with agreement():
        made = [self._store(title, images, extractor) for extractor in extractors]
      self._fill(title, images, list(zip(made, extractors, strict=True)))
      stores |= {(title, name): store for name, store in zip(names, made, strict=True)}
    return stores

  def _store(self, title, images, extractor):
    folder = self.out / "features" if title in ("samples", "held_out") else self.shared
    return feature_store.FeatureStore(
      folder, extractor, images.fingerprint, self.versions, images.count
    )

  def _fill(self, title, images, wanted):
    fill(_TITLES.get(title, title), images, wanted, self.batch_size, self.report)

  def _extractor(self, name, subject):
    """Returns an Extractor by name; each is made once, because it compiles a program."""
    if name not in self._extractors:
      size, model = self.batch_size, subject.model
      make = {
        "network": lambda: feature_networks.of_network(self.network, size),
        "examples": feature_networks.of_examples,
        "images": lambda: feature_networks.of_examples(keep_images=True),
        "discriminator": lambda: feature_networks.of_discriminator(model, size),
        "classifier": lambda: feature_networks.of_network(extractors.load("efficientnet"), size),
        "tokenizer": lambda: feature_networks.of_tokenizer(
          model, self.network, subject.held_out.size, size
        ),
      }
      self._extractors[name] = make[name]()
    return self._extractors[name]

  # -- What is written -----------------------------------------------------------------------------

  def _save(self, stores, subject, save_npz, save_stats):
    if save_npz:
      examples = stores["samples", "examples"].read("label")
      reference.write_npz(
        save_npz,
        stores["samples", "images"].chunks("image"),
        examples if subject.samples.labelled else None,
        len(examples),
        subject.samples.size,
      )
    if save_stats:
      store = stores["samples", "network"]
      parts = [part for part in ("features", "spatial") if part in subject.widths]
      moments = {part: store.moments(part) for part in parts}
      reference.write_statistics(save_stats, self.network, moments)

  def _protocol(self, subject, metrics, stores):
    sets = {
      name: getattr(subject, name).fingerprint
      for name in ("samples", "training", "held_out")
      if any(where == name for where, _ in stores)
    }
    if subject.reference:
      sets["reference"] = subject.reference.about
    for (where, name), store in stores.items():
      if name == "examples" and len(store.read("row")) < store.count:
        sets[where] = sets[where] | {"unreadable": store.count - len(store.read("row"))}
    return {
      "metrics": list(metrics),
      "network": feature_networks.describe(self.network),
      **sets,
      "settings": dataclasses.asdict(self.settings),
      "versions": self.versions,
    }

  def _timing(self, stores):
    """Returns the seconds of drawing, without compilation; it is not part of the protocol."""
    timing = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    if ("samples", "examples") in stores:
      seconds = stores["samples", "examples"].read("seconds")
      if seconds.any():
        timing["drawing_seconds_an_image"] = float(np.median(seconds[seconds > 0]))
    return timing

  def _say(self, text):
    """Prints a line once; a sweep evaluates several times."""
    if jax.process_index() == 0 and text not in self._said:
      self._said.add(text)
      print(text, flush=True)


def fill(title, images, wanted, batch_size, report=None):
  """Computes what is missing in stores [(FeatureStore, Extractor)] of one image set, every process
  its share, and shows the progress; Interrupted where a signal asks to stop."""
  with agreement():
    if jax.process_index() == 0:
      for store, _ in wanted:
        store.claim()
  with agreement(), StopSignals() as stop, Progress(title, stop, report) as progress:
    feature_store.fill(
      images,
      wanted,
      batch_size=batch_size,
      report=progress.add,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
  with agreement():
    if jax.process_index() == 0:
      for store, _ in wanted:
        store.finish()


def write(path, found):
  """Writes an evaluation to a JSON file."""
  write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False).encode())


def table(found):
  """Returns lines: a result, its standard deviation, and what it was computed on."""
  results = found["results"].values()
  width = max(len(f["name"]) for f in results)
  lines = []
  for result in results:
    std = "" if result["std"] is None else f"± {result['std']:.3g}"
    lines.append(
      f"{result['name']:<{width}}  {result['value']:>10.5g} {std:<11} {result['computed_on']}"
    )
  return [line.rstrip() for line in lines]


@contextlib.contextmanager
def agreement():
  """Ends with a barrier: if its body failed in one process, it raises in all."""
  error = None
  try:
    yield
  except (UserError, Interrupted) as caught:
    error = caught
  told = processes.gather(json.dumps(str(error or "")).encode())
  if error:
    raise error
  for index, text in enumerate(map(json.loads, told)):
    if text:
      raise UserError(f"process {index}: {text}")


class Progress:
  """Shows the rate of one set, and stops between two batches when a signal asks to."""

  def __init__(self, title, stop, report):
    self.title, self.stop, self.report = title, stop, report
    self.display, self.began, self.counted, self.shown = None, None, 0, 0.0
    self.every = 0.5 if sys.stdout.isatty() else 10.0

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if self.display:
      self.display.__exit__(*error)

  def add(self, done, total):
    """Shows that `done` of this run's `total` images are done, after a batch."""
    if jax.process_index() == 0:
      self._show(done, total)
    if self.report:
      self.report(self.title, done, total)
    if self.stop.number and done < total:
      raise Interrupted(
        f"{self.title}: stopped by {signal.Signals(self.stop.number).name} after {done} of {total} "
        "images; whole shards of features are kept, and the same command goes on from there",
        self.stop.number,
      )

  def _show(self, done, total):
    now = time.monotonic()
    if self.display is None:  # the first batch compiles
      self.display = Display(self.title, total, 0).__enter__()
      self.began, self.shown, self.first = now, now, done
    elif now - self.shown >= self.every or done == total:
      seconds = (now - self.began) / (done - self.first)
      self.display.update(done, 1 / max(seconds, 1e-9), seconds, {})
      self.shown = now
