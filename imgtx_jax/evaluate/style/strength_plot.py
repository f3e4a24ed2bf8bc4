"""The plot of a style evaluation: what each method keeps of the content against its style."""

import io

import matplotlib
from matplotlib.figure import Figure

from imgtx_jax.evaluate.sweep import PLOT_STYLE

_MEASURES = (("ssim", "SSIM with the content ↑"), ("lpips", "LPIPS from the content ↓"))


def draw(evaluation, curve):
  """Returns a plot as PNG bytes.

  evaluation: result of style.evaluation.run. curve: names of the rows of one model by rising
  strength, joined by a line. The style image itself, far from all others, is skipped.
  """
  with matplotlib.rc_context(PLOT_STYLE):
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for place, (measure, label) in enumerate(_MEASURES, 1):
      axes = figure.add_subplot(1, len(_MEASURES), place)
      points = {
        name: (row[measure]["value"], row["style"]["value"])
        for name, row in evaluation["rows"].items()
        if name != "style copy"
      }
      axes.plot(*zip(*(points[name] for name in curve), strict=True), linewidth=1.3)
      for name, (x, y) in points.items():
        axes.plot(x, y, marker="o", markersize=4, color="C0" if name in curve else "C1")
        axes.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7)
      axes.set_xlabel(label)
      axes.set_ylabel("style loss ↓")
      axes.margins(0.15)
      axes.grid(linewidth=0.4, alpha=0.5)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    return data.getvalue()
