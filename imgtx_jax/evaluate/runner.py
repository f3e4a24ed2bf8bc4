"""One evaluation: computes features of every image set that its metrics need, then the metrics.

Every process computes features of its shards, in folders that all of them see; the first process
computes the metrics, and the others wait for it. An error in one process stops all."""

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


def choose(asked, inputs, settings, among=tuple(METRICS)):
  """Returns (the names of metrics to compute, {name: why it was skipped}).

  asked: names, or () for all of `among` that can be had; UserError if one asked for cannot.
  """
  for name in asked:
    one_of("--metrics", name, METRICS)
  reasons = {n: METRICS[n].need(inputs, settings) for n in asked or among}
  skipped = {name: reason for name, reason in reasons.items() if reason}
  for name in asked:
    if name in skipped:
      raise UserError(f"--metrics={name} cannot be had: {skipped[name]}")
  if len(skipped) == len(reasons):
    raise UserError(
      f"nothing can be measured; {'; '.join(f'{n}: {r}' for n, r in skipped.items())}"
    )
  return [name for name in reasons if name not in skipped], skipped


def check_sizes(inputs):
  """Raises UserError if samples and reference differ in size and the network sees it."""
  ours, theirs = inputs.samples, inputs.reference and inputs.reference.images
  if ours and theirs and tuple(ours.size) != tuple(theirs.size):
    if inputs.network.resize == "none":
      raise UserError(
        f"samples are {image_sets.sides(ours.size)} and the reference "
        f"{image_sets.sides(theirs.size)}, and {inputs.network.name} does not resize: make them "
        "one size, or have --image_size crop and resize folders"
      )


class Evaluator:
  """Computes metrics of EvaluationInputs with one feature network and one model.

  What is compiled for one evaluation serves the next. Features are kept in the folders and read
  again for the same images, network and versions.

  out: the folder of this evaluation. shared: the folder for features of references and training
  data. batch_size: images at a time; results do not depend on it.
  """

  def __init__(self, network, settings, *, out, shared, batch_size, report=None):
    self.network, self.settings = network, settings
    self.out, self.shared = Path(out), Path(shared)
    self.batch_size = min(batch_size, feature_store.SHARD)
    self.versions = {"imgtx_jax": imgtx_jax.__version__, "jax": jax.__version__}
    self.report = report
    self._extractors, self._said = {}, set()

  def run(self, inputs, asked=(), *, among=tuple(METRICS), save_npz="", save_stats=""):
    """Computes metrics and writes the picture of nearest images and the files asked for.

    asked, among: see choose. save_npz, save_stats: files for the samples and for the moments of
    their features; "" for none. Returns a dict of results, protocol, skipped and timing; None in
    other processes than the first.
    """
    check_sizes(inputs)
    metrics, skipped = choose(asked, inputs, self.settings, among)
    for name, reason in skipped.items():
      self._say(f"skipped {name}: {reason}")
    used = [pair for name in metrics for pair in METRICS[name].uses(inputs)]
    if inputs.samples is not None and (save_npz or any(s == "samples" for s, _ in used)):
      used += [("samples", "examples")] + [("samples", "images")] * bool(save_npz)
    elif save_npz:
      raise UserError("--save_npz writes samples, and there are none")
    if save_stats:
      used.append(("samples", "network"))
    stores = self._feature_stores(inputs, used)
    try:
      if jax.process_index():
        return None
      self._warn_of_repeats(stores)
      evaluation = self._compute(inputs, metrics, stores, skipped)
      self._save(stores, inputs, save_npz, save_stats)
      return evaluation
    finally:
      processes.gather(b"the first process has computed")

  def _warn_of_repeats(self, stores):
    """Says so where the samples hold the same images again and again, as a collapsed model's do."""
    if ("samples", "examples") in stores:
      digests = stores["samples", "examples"].read("digest")
      distinct = len(np.unique(digests))
      if distinct < _DISTINCT * len(digests):
        self._say(f"warning: the {len(digests)} samples are {distinct} distinct images")

  def _compute(self, inputs, metrics, stores, skipped):
    """Returns what run returns, from filled stores."""
    results = {}
    for name in metrics:
      for result in METRICS[name].compute(stores, inputs, self.settings):
        results[result.name] = {"metric": name, **result._asdict()}
    if "nearest" in metrics:
      path = self.out / "nearest.png"
      nearest.write_picture(path, stores, inputs, self.settings.nearest, self.batch_size)
    return {
      "results": results,
      "skipped": skipped,
      "protocol": self._protocol(inputs, metrics, stores),
      "timing": self._timing(stores),
    }

  # -- Features ------------------------------------------------------------------------------------

  def _feature_stores(self, inputs, used):
    """Returns {(set, extractor): FeatureStore} of all pairs, filled."""
    stores = {}
    for title in ("samples", "reference", "training", "held_out"):
      names = list(dict.fromkeys(name for where, name in used if where == title))
      if not names:
        continue
      images = getattr(inputs, title)
      images = images.images if title == "reference" else images
      over_images = [self._extractor(name, inputs) for name in names]
      with agreement():
        made = [self._store(title, images, extractor) for extractor in over_images]
      self._fill(title, images, list(zip(made, over_images, strict=True)))
      stores |= {(title, name): store for name, store in zip(names, made, strict=True)}
    return stores

  def _store(self, title, images, extractor):
    folder = self.out / "features" if title in ("samples", "held_out") else self.shared
    return feature_store.FeatureStore(
      folder, extractor, images.fingerprint, self.versions, images.count
    )

  def _fill(self, title, images, wanted):
    fill(_TITLES.get(title, title), images, wanted, self.batch_size, self.report)

  def _extractor(self, name, inputs):
    """Returns an Extractor by name; each is made once, because it compiles a program."""
    if name not in self._extractors:
      size, model = self.batch_size, inputs.model
      make = {
        "network": lambda: extractors.of_network(self.network, size),
        "examples": extractors.of_examples,
        "images": lambda: extractors.of_examples(keep_images=True),
        "discriminator": lambda: extractors.of_discriminator(model, size),
        "classifier": lambda: extractors.of_network(feature_networks.load("efficientnet"), size),
        "tokenizer": lambda: extractors.of_tokenizer(
          model, self.network, inputs.held_out.size, size
        ),
      }
      self._extractors[name] = make[name]()
    return self._extractors[name]

  # -- What is written -----------------------------------------------------------------------------

  def _save(self, stores, inputs, save_npz, save_stats):
    if save_npz:
      examples = stores["samples", "examples"].read("label")
      reference.write_npz(
        save_npz,
        stores["samples", "images"].chunks("image"),
        examples if inputs.samples.labelled else None,
        len(examples),
        inputs.samples.size,
      )
    if save_stats:
      store = stores["samples", "network"]
      parts = [part for part in ("features", "spatial") if part in inputs.widths]
      moments = {part: store.moments(part) for part in parts}
      reference.write_statistics(save_stats, self.network, moments)

  def _protocol(self, inputs, metrics, stores):
    sets = {
      name: getattr(inputs, name).fingerprint
      for name in ("samples", "training", "held_out")
      if any(where == name for where, _ in stores)
    }
    if inputs.reference:
      sets["reference"] = inputs.reference.about
    for (where, name), store in stores.items():
      if name == "examples" and len(store.read("row")) < store.count:
        sets[where] = sets[where] | {"unreadable": store.count - len(store.read("row"))}
    return {
      "metrics": list(metrics),
      "network": extractors.describe(self.network),
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
  """Computes what is missing in stores [(FeatureStore, Extractor)] of one image set.

  Every process computes shards of its own. Shows the progress under `title`. report: called as
  report(title, done, total) after each batch; may raise to stop. Raises Interrupted when a signal
  asks to stop.
  """
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


def write(path, evaluation):
  """Writes an evaluation to a JSON file."""
  write_atomically(path, json.dumps(evaluation, indent=1, ensure_ascii=False).encode())


def table(evaluation):
  """Returns a line for each result: its value, standard deviation, and what it was computed on."""
  results = evaluation["results"].values()
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
  """Waits for all processes at the end of its body; if that failed in one, raises in all."""
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
