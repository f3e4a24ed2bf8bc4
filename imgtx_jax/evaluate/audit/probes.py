"""Saliency of the discriminator, and the stability of its predictions under corruptions."""

import numpy as np

from imgtx_jax.evaluate.audit import corruptions
from imgtx_jax.metrics import classification as class_metrics

MAPS = ("attention", "logit", "class")
SHOWN = 6  # images of a set that are shown
AVERAGED = 128  # images of a set in the mean maps
EDGE = 1 / 8  # of the side, at each edge


def stability(examiner, real, samples):
  """Predicts real and sampled images (ImageSets) under each corruption at each strength.

  Returns dicts: name, strength, amount (in words), and for "real" and "samples" a dict of
    unchanged   fraction of images whose predicted class stays
    accuracy    fraction whose predicted class is their label
    shift       mean change of the logit, in standard deviations within a label
    above_own   fraction whose logit is above the mean of the model's samples of the label
  The row of strength 0, called "none", has the values of the images as they are.
  """
  sets = {"real": real, "samples": samples}
  before = {name: _as_they_are(image_set) for name, image_set in sets.items()}
  own = _own_means(samples)
  rows = [{"name": "none", "strength": 0, "amount": ""}]
  rows[0] |= {name: _shifted(values, values, own) for name, values in before.items()}
  for name in corruptions.CORRUPTIONS:
    for strength in corruptions.STRENGTHS:
      row = {"name": name, "strength": strength, "amount": corruptions.describe(name, strength)}
      for which, image_set in sets.items():
        images = corruptions.corrupt(name, image_set.images, strength)
        labels = before[which]["labels"]
        logit, answer, _ = examiner.judge(images, labels)
        after = {"labels": labels, "logit": logit, "answer": answer}
        row[which] = _shifted(before[which], after, own)
      rows.append(row)
  return rows


def _as_they_are(image_set):
  """Returns the predictions on the images that an ImageSet kept."""
  count = len(image_set.images)
  return {name: getattr(image_set, name)[:count] for name in ("labels", "logit", "answer")}


def _own_means(samples):
  """Returns {label: mean logit of the samples}."""
  return {
    label: samples.logit[samples.labels == label].mean()
    for label in np.unique(samples.labels).tolist()
  }


def _shifted(before, after, own):
  """Returns the values of `stability` for one set."""
  labels = before["labels"]
  deviation = class_metrics.within_class_deviation(before["logit"], labels)
  known = np.array([label in own for label in labels.tolist()])
  means = np.array([own.get(label, 0.0) for label in labels.tolist()])
  above = (after["logit"] > means)[known]
  return {
    "unchanged": float(np.mean(after["answer"] == before["answer"])),
    "accuracy": float(np.mean(after["answer"] == labels)),
    "shift": float(np.mean(after["logit"] - before["logit"]) / max(deviation, 1e-12)),
    "above_own": float(above.mean()) if len(above) else None,
  }


def saliency_maps(examiner, sets, class_names):
  """Returns saliency of {name: ImageSet}: (numbers for audit.json, pictures for the page).

  numbers: {"edge_area", name: {"images": their number, MAP: the fraction of the map at the edges,
  "self": the fraction of its attention that [cls] pays to itself, "examples": […]}}.
  pictures: {name: {"mean": {"image", "attention", "logit", "class"}, "examples": [the same of
  single images]}}.
  """
  numbers, pictures = {"edge_area": None}, {}
  for name, image_set in sets.items():
    images = image_set.images[:AVERAGED]
    labels = image_set.labels[: len(images)]
    maps = examiner.saliency(images, labels)
    self_attention = 1.0 - float(maps["attention"].sum(axis=(1, 2)).mean())
    # Each image counts the same, however steep its gradient.
    maps = {key: value / _totals(value) for key, value in maps.items()}
    chosen = choose(labels, len(class_names))
    numbers["edge_area"] = edge_fraction(np.ones(images.shape[1:3]))
    numbers[name] = {"images": len(images), "self": self_attention}
    numbers[name] |= {key: edge_fraction(maps[key].mean(axis=0)) for key in MAPS}
    numbers[name]["examples"] = [_example(image_set, i, class_names, maps) for i in chosen]
    mean = {key: maps[key].mean(axis=0) for key in MAPS}
    mean["image"] = images.mean(axis=0).round().astype(np.uint8)
    examples = [{key: maps[key][i] for key in MAPS} | {"image": images[i]} for i in chosen]
    pictures[name] = {"mean": mean, "examples": examples}
  return numbers, pictures


def choose(labels, classes):
  """Returns the indices of up to SHOWN images of different classes, given labels int [n]."""
  count = min(SHOWN, classes)
  chosen = []
  for label in np.arange(count) * classes // count:
    chosen += np.flatnonzero(labels == label)[:1].tolist()
  return chosen


def edge_fraction(heat):
  """Returns the fraction of a map [h, w] within EDGE of the side from an edge.

  The map is constant over each of its cells.
  """
  rows, columns = (_edge_weights(size) for size in heat.shape)
  inside = np.outer(1 - rows, 1 - columns)
  return float(np.sum(heat * (1 - inside)) / max(np.sum(heat), 1e-12))


def _edge_weights(size):
  """Returns the fraction of each of `size` cells along a side that lies at an edge; [size]."""
  ends = np.arange(size + 1) / size
  inner = np.minimum(ends[1:], 1 - EDGE) - np.maximum(ends[:-1], EDGE)
  return 1 - np.maximum(inner, 0) * size


def _totals(maps):
  return np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-12)


def _example(image_set, index, class_names, maps):
  attention = maps["attention"][index]
  return {
    "label": class_names[image_set.labels[index]],
    "answer": class_names[image_set.answer[index]],
    "probability": float(image_set.probability[index]),
    "logit": float(image_set.logit[index]),
    "attention_peak": float(attention.max() / attention.mean()),
  }
