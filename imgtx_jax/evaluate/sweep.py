"""The same evaluation at several values of one option, and its plot."""

import io
import json
import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import write_atomically

# What depends on how samples are drawn.
METRICS = (
  "frechet",
  "sfid",
  "inception_score",
  "kid",
  "precision_recall",
  "class_accuracy",
)
PLOT_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def parse(text, options, whole=()):
  """Returns (name, values) of a text such as "cfg_scale=1,1.5,2".

  options: {name: (least, most or None)}. whole: names of options that take whole numbers. Raises
  UserError for anything else.
  """
  name, _, listed = text.partition("=")
  if name not in options:
    raise UserError(f"--sweep={text}: {name!r} is not one of: {', '.join(options)}")
  try:
    values = [float(word) for word in listed.split(",")]
  except ValueError as error:
    raise UserError(f"--sweep={text}: give numbers between commas, as {name}=1,2,4") from error
  least, most = options[name]
  for value in values:
    if not (least <= value < math.inf and (most is None or value <= most)):
      raise UserError(f"--sweep={text}: {value:g} is outside {least} … {most or 'the vocabulary'}")
    if name in whole and value != int(value):
      raise UserError(f"--sweep={text}: {name} takes whole numbers, not {value:g}")
  return name, [int(v) if v == int(v) else v for v in values]


def write(folder, name, evaluations):
  """Writes sweep.json and sweep.png to a folder; evaluations: [(value, Evaluator.run's dict)]."""
  sweep = {
    "option": name,
    "evaluations": [{"value": value} | evaluation for value, evaluation in evaluations],
  }
  text = json.dumps(sweep, indent=1, ensure_ascii=False)
  write_atomically(folder / "sweep.json", text.encode())
  write_atomically(folder / "sweep.png", draw(name, evaluations))


def draw(name, evaluations):
  """Returns a plot as PNG bytes.

  It shows each distance, the Inception Score, precision and recall over the option's value,
  precision over recall, and the distance over the seconds an image takes.
  """
  values = [value for value, _ in evaluations]
  seconds = [e["timing"].get("drawing_seconds_an_image") for _, e in evaluations]
  by_metric = {}
  for result in evaluations[0][1]["results"].values():
    by_metric.setdefault(result["metric"], []).append(result["name"])

  def series(name):
    return [e["results"][name]["value"] for _, e in evaluations]

  panels = []  # (x label, y label, x, {line: y})
  for metric in METRICS:
    names = by_metric.get(metric, [])
    if names:
      label = names[0] if len(names) == 1 else ""
      panels.append((name, label, values, {n: series(n) for n in names}))
  if "precision_recall" in by_metric:
    precision, recall = by_metric["precision_recall"][:2]
    panels.append((recall, precision, series(recall), {"": series(precision)}))
  if "frechet" in by_metric and all(seconds):
    distance = by_metric["frechet"][0]
    panels.append(("seconds an image", distance, seconds, {"": series(distance)}))
  return _draw(panels, name, values)


def _draw(panels, name, values):
  with matplotlib.rc_context(PLOT_STYLE):
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
    for place, (x_label, y_label, x, lines) in enumerate(panels, 1):
      axes = figure.add_subplot(rows, columns, place)
      for line, y in lines.items():
        axes.plot(x, y, marker="o", markersize=3, linewidth=1.3, label=line)
      if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7)
      if x is not values:  # the points are told apart by their value
        for value, at, height in zip(values, x, next(iter(lines.values())), strict=True):
          axes.annotate(f"{value:g}", (at, height), (4, 4), textcoords="offset points", fontsize=7)
      axes.xaxis.set_major_locator(MaxNLocator(4))
      axes.set_xlabel(x_label)
      axes.set_ylabel(y_label)
      axes.grid(linewidth=0.4, alpha=0.5)
    figure.suptitle(f"{name} = {', '.join(f'{v:g}' for v in values)}", fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    return data.getvalue()
