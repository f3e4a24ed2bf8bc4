"""Style transfer measured over pairs of content and style: a row for each method.

Figures of every pair are kept in shards (feature_store), so that a killed run goes on.
"""

import time
from pathlib import Path

import jax
import numpy as np

import imgtx_jax
from imgtx_jax.distributed import processes
from imgtx_jax.evaluate import runner
from imgtx_jax.evaluate.feature_store import FeatureStore
from imgtx_jax.evaluate.style.style_measures import CONTENT, METRICS, Measures, describe
from imgtx_jax.evaluate.style.style_methods import Model
from imgtx_jax.evaluate.style.style_pairs import Outputs, RepeatedOutputs

LEAST_SIDE = 32  # of images: AlexNet's, rounded up
SHARD = 32  # pairs: what a kill loses
_REPEATS = 5  # of which the median time counts


def default_batch(size):
  """Returns the batch size for images of side `size`; VGG16 takes about 2 GB for it."""
  return max(1, 8 * 256**2 // size**2)


def run(pairs, methods, *, out, batch_size, leak_pairs, leak_rounds, report=None):
  """Measures methods of style transfer on pairs of a content and a style.

  Args:
    pairs: Pairs.
    methods: Methods.
    out: the folder that the features are kept in.
    batch_size: number of pairs at a time.
    leak_pairs: number of pairs for content leak: each Method with `repeats` is applied to its own
      output, in the same style, leak_rounds times. 0 leaves it out.
    leak_rounds: number of those rounds.
    report: called as report(title, done, total) after each batch; may raise to stop.

  Returns:
    A dict of rows, leak, protocol and timing; None in other processes than the first.
  """
  timing = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
  # Before the judging networks are in memory: the model's own peak.
  timed = sorted((m for m in methods if m.repeats), key=lambda m: not isinstance(m, Model))
  timing["methods"] = {m.name: time_method(m, pairs) for m in timed}
  measures = Measures(pairs, batch_size)
  options = dict(out=Path(out) / "features", batch_size=batch_size, report=report)
  stores = {m.name: _fill(Outputs(m, pairs), measures.extractor(), **options) for m in methods}
  leaks = {}
  for method in methods if leak_pairs else ():
    if method.repeats:
      images = RepeatedOutputs(method, pairs, count=leak_pairs, rounds=leak_rounds)
      store = _fill(images, measures.repeated_extractor(), **options)
      leaks[method.name] = images, store
  if jax.process_index():
    return None
  timing["peak_memory_bytes"] = processes.peak_memory_bytes()
  return {
    "rows": {name: _means(store, METRICS) for name, store in stores.items()},
    "leak": {
      name: {str(r): _means(store, CONTENT, i) for i, r in enumerate(images.seen)}
      for name, (images, store) in leaks.items()
    },
    "protocol": _protocol(pairs, methods, leaks),
    "timing": timing,
  }


def _fill(images, extractor, *, out, batch_size, report):
  """Returns the filled FeatureStore of an image set."""
  with runner.agreement():
    store = FeatureStore(out, extractor, images.fingerprint, versions(), images.count, SHARD)
  title = f"{images.method.name}, repeated" if extractor.name == "leak" else images.method.name
  runner.fill(title, images, [(store, extractor)], batch_size, report)
  return store


def versions():
  """Returns {name: version} of what computes the results."""
  return {"imgtx_jax": imgtx_jax.__version__, "jax": jax.__version__}


def _means(store, names, column=None):
  """Returns {name: {"value", "std"}} over pairs; column: index of the round."""
  means = {}
  for name in names:
    values = store.read(name).astype(np.float64)
    values = values if column is None else values[:, column]
    means[name] = {"value": float(values.mean()), "std": float(values.std())}
  return means


def _protocol(pairs, methods, leaks):
  protocol = {
    "metrics": ["style"],
    "pairs": pairs.fingerprint,
    "methods": {method.name: method.fingerprint for method in methods},
    "networks": describe(),
    "std": "over pairs, which share contents and styles: no standard error",
    "versions": versions(),
  }
  for images, _ in leaks.values():
    protocol["leak"] = {"pairs": images.count, "rounds": images.rounds, "bits": 8}
  return protocol


def time_method(method, pairs):
  """Returns the speed of a method, after compilation, one pair at a time.

  It is {"seconds_a_pair"}, with the style already encoded; for a Model also "seconds_a_style" and
  "peak_memory_bytes" (on a CPU, of the process so far).
  """
  row = np.zeros(1, np.int64)
  content = pairs.content(row)
  if not isinstance(method, Model):
    return {"seconds_a_pair": _seconds(lambda: method.apply(content, pairs, row))}
  single = method.single()
  timing = {
    "seconds_a_pair": _seconds(lambda: single.apply(content, pairs, row)),
    "seconds_a_style": _seconds(lambda: single.encode(pairs.style(row)[0])),
  }
  return timing | {"peak_memory_bytes": processes.peak_memory_bytes()}


def _seconds(function):
  """Returns the median seconds of a call, after one more that compiles."""
  function()
  taken = []
  for _ in range(_REPEATS):
    began = time.monotonic()
    function()
    taken.append(time.monotonic() - began)
  return float(np.median(taken))


def table(evaluation):
  """Returns lines: a row for each method, then the content measures after repetition."""
  heads = [f"{label} {better}".rstrip() for label, better, _ in METRICS.values()] + ["s a pair"]
  rows = [["", *heads]]
  for name, values in evaluation["rows"].items():
    seconds = evaluation["timing"]["methods"].get(name, {}).get("seconds_a_pair")
    cells = [f"{values[metric]['value']:.4g}" for metric in METRICS]
    rows.append([name, *cells, "" if seconds is None else f"{seconds:.3g}"])
  lines = _aligned(rows)
  for name, rounds in evaluation["leak"].items():
    rows = [[f"{name}, applied", *heads[: len(CONTENT)]]]
    for count, values in rounds.items():
      rows.append([f"{count} ×", *(f"{values[metric]['value']:.4g}" for metric in CONTENT)])
    lines += ["", *_aligned(rows)]
  return lines


def _aligned(rows):
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.rjust(width) if place else cell.ljust(width)
      for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
