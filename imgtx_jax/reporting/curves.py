"""Curves of metrics as SVG that takes its colours from the page around it."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

# Stand-ins that matplotlib draws with; the page's own colours, light or dark, take their places.
_INK = {"#010101": "var(--muted)", "#020202": "var(--line)"}
_COLORS = {"train": "#030303", "validation": "#040404", "": "#050505"}
_INK |= {color: f"var(--{split or 'plain'})" for split, color in _COLORS.items()}
_STYLE = {
  "svg.fonttype": "none",  # text stays text, in the page's font
  "font.size": 8,
  "text.color": "#010101",
  "xtick.color": "#010101",
  "ytick.color": "#010101",
  "axes.edgecolor": "#020202",
  "grid.color": "#020202",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.spines.left": False,
}
_BUCKETS = 150


def draw_curve(series, *, salt):
  """Returns an inline <svg> of {split: (steps, values)}, splits "train", "validation" or "".

  It is "" if no value is finite. Of long series the mean over neighbours is drawn, in a band from
  their least to their greatest value. salt keeps the ids of several figures of a page apart.
  """
  with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}):
    figure = Figure(figsize=(2.9, 1.5), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", linewidth=0.6)
    axes.tick_params(length=0)
    lows, highs = [], []
    for split, (steps, values) in series.items():
      x, mean, low, high = _buckets(np.asarray(steps, float), np.asarray(values, float))
      color = _COLORS[split]
      few = len(x) <= 25
      axes.plot(x, mean, color=color, linewidth=1.4, marker="o" if few else "", markersize=2.6)
      if len(x) < len(steps):
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
      lows.append(low)
      highs.append(high)
    low, high = np.concatenate(lows), np.concatenate(highs)
    if not len(low):
      return ""
    if low.min() > 0 and high.max() > 40 * low.min():
      axes.set_yscale("log")
      axes.yaxis.set_minor_formatter(NullFormatter())
    else:
      axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.02)
    return _svg(figure)


def _buckets(steps, values):
  """(steps, mean, least, greatest) of at most _BUCKETS runs of neighbours, finite values only."""
  finite = np.isfinite(values)
  steps, values = steps[finite], values[finite]
  if len(values) <= _BUCKETS:
    return steps, values, values, values
  starts = np.linspace(0, len(values), _BUCKETS, endpoint=False).astype(int)
  counts = np.diff(np.append(starts, len(values)))
  return (
    np.add.reduceat(steps, starts) / counts,
    np.add.reduceat(values, starts) / counts,
    np.minimum.reduceat(values, starts),
    np.maximum.reduceat(values, starts),
  )


def _svg(figure):
  """The figure's <svg> element alone, sized and coloured by the page."""
  text = io.StringIO()
  figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
  svg = text.getvalue()
  svg = svg[svg.index("<svg") :].strip()
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
  svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # would hold for the whole page
  svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
  svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure
  svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
  svg = re.sub(r"font: [\d.]+px [^;\"]*", "font: 8px var(--font)", svg)
  svg = re.sub(r"\n\s*", "\n", svg)
  for color, variable in _INK.items():
    svg = svg.replace(color, variable)
  return svg
