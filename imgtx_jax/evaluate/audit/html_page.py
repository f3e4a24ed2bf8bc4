"""The audit as one self-contained HTML page, without scripts."""

import base64
import math
import time

import cv2
import numpy as np

from imgtx_jax.evaluate import saliency
from imgtx_jax.evaluate.audit import corruptions
from imgtx_jax.evaluate.audit.summary import percent, signed
from imgtx_jax.reporting.report import template

MATRIX = 25  # classes that a confusion matrix is drawn for; of more, the strongest are listed
LISTED = 30
_SIDE = 128  # pixels of a heat map, at least
_BAR = 240  # units of a bar's width


def render(title, audit, pictures):
  """Returns the page's text.

  audit: the values of audit.json. pictures: those of probes.saliency_maps, and "corrupted": an
  image uint8 [H, W, 3] to show the corruptions on.
  """
  names = audit["confusion"]["names"]
  return template("audit.html.jinja").render(
    percent=percent,
    signed=signed,
    small=_small,
    title=title,
    written=time.strftime("%Y-%m-%d %H:%M"),
    audit=audit,
    ranked=_ranked(audit["classes"]),
    listed=LISTED,
    matrices=len(names) <= MATRIX,
    judges=_judges(audit),
    saliency=[
      _saliency(name, audit["saliency"][name], pictures[name]) for name in ("real", "samples")
    ],
    thumbnails=_thumbnails(pictures["corrupted"]),
    strongest=max((abs(row["real"]["shift"]) for row in audit["stability"]), default=0) or 1.0,
  )


def _small(value):
  """Returns three significant digits, or a dash."""
  return "–" if value is None else f"{value:.3g}".replace("-", "\u2212")


def _ranked(rows):
  """Classes by kernel distance, then by how few of their samples are recognised; the unmeasured at
  the end."""

  def key(row):
    distance = row["distance"]
    kernel = -distance["samples"]["kernel"] if distance else math.inf
    seen = row["accuracy_samples"]
    return kernel, math.inf if seen is None else seen

  return sorted(rows, key=key)


def _judges(audit):
  """Returns confusions and class-unconditional fractions of the class head and the discriminant."""
  judges = [("the class head", audit)]
  if audit["by_features"]:
    who = f"the discriminant on {audit['protocol']['network']['name']} features"
    judges.append((who, audit["by_features"]))
  return [
    {
      "who": who,
      "mean_accuracy": judged["confusion"]["mean_accuracy"],
      "confusions": [
        _confusion(judged["confusion"]["names"], np.array(judged["confusion"][key]), words)
        for key, words in (("real", "held-out images"), ("samples", "samples"))
      ],
      "bars": _bars(judged["unconditional"]),
    }
    for who, judged in judges
  ]


def _confusion(names, counts, words):
  """Returns a confusion matrix for the page, and its strongest confusions."""
  totals = counts.sum(axis=1)
  fractions = counts / np.maximum(totals, 1)[:, None]
  rows = [
    {
      "name": name,
      "total": int(total),
      "cells": [{"count": int(c), "fraction": float(f)} for c, f in zip(count, row, strict=True)],
    }
    for name, total, count, row in zip(names, totals, counts, fractions, strict=True)
  ]
  wrong = fractions.copy()
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
  pairs = [divmod(int(place), len(names)) for place in order]
  strongest = [
    {
      "label": names[i],
      "answer": names[j],
      "fraction": float(wrong[i, j]),
      "count": int(counts[i, j]),
      "total": int(totals[i]),
    }
    for i, j in pairs
    if wrong[i, j]
  ]
  return {"words": words, "names": names, "rows": rows, "strongest": strongest}


def _bars(rows):
  """Where the marks of a class-unconditional fraction stand, in units of the bar's width; the most
  favoured first."""
  most = max(max(row["high"], row["expected"], row["data_fraction"]) for row in rows) or 1.0

  def place(fraction):
    return round(min(max(fraction / most, 0), 1) * _BAR, 1)

  bars = []
  for row in sorted(rows, key=lambda row: -row["deviations"]):
    expected, deviation = row["expected"], row["expected_deviation"]
    bars.append(
      row
      | {
        "x": place(row["fraction"]),
        "x_low": place(row["low"]),
        "x_high": place(row["high"]),
        "x_expected": place(expected),
        "x_expected_low": place(expected - 2 * deviation),
        "x_expected_high": place(expected + 2 * deviation),
      }
    )
  return bars


def _saliency(name, numbers, pictures):
  """Returns the rows of pictures of one set, the mean first."""
  words = {"real": "Held-out images", "samples": "Samples"}[name]
  rows = [
    {"caption": f"Mean of {numbers['images']}", "detail": "", "cells": _cells(pictures["mean"])}
  ]
  for example, shown in zip(numbers["examples"], pictures["examples"], strict=True):
    detail = f"the class head says {example['answer']} ({example['probability']:.0%})"
    rows.append({"caption": example["label"], "detail": detail, "cells": _cells(shown)})
  return {"words": words, "numbers": numbers, "rows": rows}


def _cells(shown):
  """Returns data URIs of an image and its three saliency maps."""
  image = shown["image"]
  scale = math.ceil(_SIDE / image.shape[0])
  large = image.repeat(scale, axis=0).repeat(scale, axis=1)
  # Attention has a value a patch: smooth edges would claim more than is known.
  cells = {
    "image": image,
    "attention roll-out": saliency.overlay(large, shown["attention"], cv2.INTER_NEAREST),
  }
  for key, words in (("logit", "gradient of the logit"), ("class", "gradient of the class")):
    cells[words] = saliency.overlay(large, saliency.cap(shown[key]), cv2.INTER_NEAREST)
  return {words: _data_uri(picture) for words, picture in cells.items()}


def _thumbnails(image):
  """Returns {(corruption, strength): data URI} of one image; ("none", 0) is the image itself."""
  thumbnails = {("none", 0): _data_uri(image)}
  for name in corruptions.CORRUPTIONS:
    for strength in corruptions.STRENGTHS:
      thumbnails[name, strength] = _data_uri(corruptions.corrupt(name, image[None], strength)[0])
  return thumbnails


def _data_uri(image):
  """Returns an image uint8 [H, W, 3] as a PNG in a data URI."""
  _, data = cv2.imencode(".png", image[:, :, ::-1])
  return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
