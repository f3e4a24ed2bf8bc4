"""The report of a work directory: report.html for people, report.json for programs."""

import base64
import io
import json
import math
import re
import time
from pathlib import Path

import jinja2
import numpy as np
from absl import logging
from PIL import Image

from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError, first_line
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.reporting.curves import draw_curve
from imgtx_jax.training.metric_writer import read_metrics

_TIMELINE = 16  # pictures of one name on the page; what lies between is left in its folder
_EMBEDDED_BYTES = 2**18  # of a picture's file at most, to be on the page as it is
_THUMBNAIL = 768  # pixels a side of the others at most
_ACRONYMS = {"psnr", "ssim", "lpips", "fid", "gpt", "r1", "r2", "ema", "mse", "kid", "l1", "l2"}
_ACRONYMS |= {"fd", "vgg16"}
# Numbers of a summary that the page shows, and the types of its best.
_SUMMARY_NUMBERS = ("steps", "seconds", "compile_seconds", "images_per_second", "peak_memory_bytes")
_NO_BEST = {"step": 0, "metric": "", "value": 0.0}
_SPELLED = {"rfd": "rFD", "rkid": "rKID"}


def write(workdir):
  """Writes report.html and report.json of the stages that a work directory has so far."""
  workdir = Path(workdir)
  config = _read_json(workdir / "config.json", {})
  directories = _stage_directories(workdir, config.get("stages", configs.STAGES))
  if not directories:
    raise UserError(
      f"nothing to report in {workdir}: no stage has started there; train first with "
      f"python -m imgtx_jax.main --config FILE --workdir {workdir}"
    )
  summaries = [_summarize(directory) for directory in directories]
  figures = {
    f"{summary['directory']}/{name}": value
    for summary in summaries
    for name, value in summary["figures"].items()
  }
  compared = _compare_rounds(summaries)
  report = {"stages": summaries, "figures": figures, "rounds": compared, "config": config}
  text = json.dumps(finite(report), indent=2, allow_nan=False)
  write_atomically(workdir / "report.json", text.encode())
  stages = [
    summary | {"curves": _curves(directory), "pictures": _pictures(directory / "pictures")}
    for summary, directory in zip(summaries, directories, strict=True)
  ]
  page = template("report.html.jinja").render(
    title=workdir.resolve().name,
    written=time.strftime("%Y-%m-%d %H:%M"),
    seconds=sum(stage["seconds"] or 0 for stage in stages),
    rounds=max(stage["round"] for stage in stages),
    compared=compared,
    compared_samples=_round_samples(stages),
    stages=stages,
    cover=_cover(stages),
    config=json.dumps(config, indent=2),
  )
  write_atomically(workdir / "report.html", page.encode())


def _stage_directories(workdir, order):
  """The folders {round}-{stage} of workdir, as the stages ran."""
  order = list(order)
  found = []
  for directory in workdir.iterdir() if workdir.is_dir() else ():
    match = re.fullmatch(r"(\d+)-(\w+)", directory.name)
    if match and directory.is_dir():
      stage = match[2]
      place = order.index(stage) if stage in order else len(order)
      found.append((int(match[1]), place, stage, directory))
  return [directory for *_, directory in sorted(found)]


def _summarize(directory):
  """A stage's summary.json; of a stage that has not ended, how far its metrics say it is.

  figures are final; latest holds the newest held-out values of an unfinished stage.
  """
  number, stage = directory.name.split("-", 1)
  summary = {"directory": directory.name, "stage": stage, "round": int(number)}
  metrics = read_metrics(directory)
  last = metrics[-1] if metrics else {"step": 0, "seconds": 0.0}
  ended = _read_summary(directory / "summary.json")
  summary |= {
    "finished": ended is not None,
    "steps": last["step"],
    "seconds": last.get("seconds", 0.0),
    "compile_seconds": None,
    "images_per_second": None,
    "peak_memory_bytes": None,
    "figures": {},
    "latest": {},
    "collapses": [],
    "best": None,
  }
  if ended is not None:
    own = {name: summary[name] for name in ("directory", "stage", "round")}
    return summary | ended | own
  for line in metrics:
    held_out = {k: v for k, v in line.items() if "/" in k and not k.startswith("train/")}
    summary["latest"] |= held_out
  return summary


def _compare_rounds(summaries):
  """{"STAGE/FIGURE": [its value in each round, or None]}: the figures that a stage has in at least
  two rounds. A stage that has not ended counts with its latest figures."""
  count = max(summary["round"] for summary in summaries)
  rows = {}
  for summary in summaries:
    for name, value in (summary["figures"] or summary["latest"]).items():
      values = rows.setdefault(f"{summary['stage']}/{name}", [None] * count)
      values[summary["round"] - 1] = value
  rows = {name: row for name, row in rows.items() if sum(v is not None for v in row) > 1}
  # The GPT's bits per code first: whether fine-tuning keeps it a prior is what rounds turn on.
  return dict(sorted(rows.items(), key=lambda item: "bits_per_code" not in item[0]))


def _round_samples(stages):
  """[{"name", "stage", "rounds": [(round, last picture)]}]: the sample pictures that several rounds
  of a stage have."""
  found = {}
  for stage in stages:
    for picture in stage["pictures"]:
      if "sample" in picture["name"]:
        rounds = found.setdefault((stage["stage"], picture["name"]), [])
        rounds.append((stage["round"], picture["steps"][-1]))
  return [
    {"stage": stage, "name": name, "rounds": rounds}
    for (stage, name), rounds in found.items()
    if len(rounds) > 1
  ]


def _curves(directory):
  """One curve a metric: [{name, series: {split: last value}, svg}], held-out metrics first.

  train/x and validation/x share the curve x.
  """
  curves = {}
  for line in read_metrics(directory):
    for key, value in line.items():
      if key in ("step", "seconds"):
        continue
      split, _, name = key.partition("/")
      if split not in ("train", "validation"):
        split, name = "", key
      steps, values = curves.setdefault(name, {}).setdefault(split, ([], []))
      steps.append(line["step"])
      values.append(value)
  ordered = sorted(curves.items(), key=lambda item: "validation" not in item[1])
  return [
    {
      "name": name,
      "series": {split: values[-1] for split, (_, values) in sorted(series.items())},
      "svg": draw_curve(series, salt=f"{directory.name}/{name}"),
    }
    for name, series in ordered
  ]


def _pictures(folder):
  """The pictures of a stage by name: [{name, steps: [see _embed], left_out}]."""
  names = {}
  for path in sorted(folder.glob("*.png")):
    name, _, step = path.stem.rpartition("-")
    if name and step.isdecimal() and _is_whole(path):
      names.setdefault(name, []).append((int(step), path))
  pictures = []
  for name, paths in sorted(names.items(), key=lambda item: _natural(item[0])):
    paths.sort()
    places = np.linspace(0, len(paths) - 1, min(len(paths), _TIMELINE)).round().astype(int)
    pictures.append(
      {
        "name": name,
        "steps": [_embed(*paths[place]) for place in places],
        "left_out": len(paths) - len(places),
      }
    )
  return pictures


def _is_whole(path):
  """Returns whether a picture can be decoded; warns of one that cannot."""
  try:
    with Image.open(path) as image:
      image.load()
    return True
  except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
    logging.warning("%s is no whole picture (%s): the report leaves it out", path, error)
    return False


def _cover(stages):
  """(stage, picture) for the top of the page: the last stage's samples, of several prefixes those
  with the most codes; or what it has; or None."""
  for stage in reversed(stages):
    samples = [picture for picture in stage["pictures"] if "sample" in picture["name"]]
    if samples or stage["pictures"]:
      return stage, (samples or stage["pictures"])[-1]
  return None


def _natural(name):
  """A sorting key that takes the numbers in a name as numbers: k4 before k16."""
  return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _embed(step, path):
  """A picture for the page: {step, data (a URL), width, height, original (its path)}.

  Small ones are enlarged; large ones are thumbnails, in a page that stays small at any image size.
  """
  kind, data = "png", path.read_bytes()
  with Image.open(path) as image:
    if len(data) > _EMBEDDED_BYTES:
      image = image.convert("RGB")
      image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
      kind, file = "jpeg", io.BytesIO()
      image.save(file, "JPEG", quality=80)
      data = file.getvalue()
    width, height = image.size
  scale = max(1, min(4, 928 * 2 // width / 2))  # halves are whole pixels of a fine screen
  return {
    "step": step,
    "data": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
    "width": round(width * scale),
    "height": round(height * scale),
    "original": "/".join(path.parts[-3:]),
  }


def template(name):
  """Returns the Jinja template of that name, with filters for words and numbers.

  Undefined names in it raise an error.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("imgtx_jax.reporting"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {
    "words": _words,
    "number": _number,
    "duration": _duration,
    "memory": _memory,
    "unit": _unit,
  }
  return environment.get_template(name)


def _words(name):
  """validation/code_usage → validation · code usage."""
  words = re.split(r"[_ ]", name.replace("/", " · "))
  return " ".join(word.upper() if word in _ACRONYMS else _SPELLED.get(word, word) for word in words)


def _number(value):
  """Four significant digits; thousands apart by a thin space."""
  if value is None:
    return "–"
  if isinstance(value, str):
    return value
  if not math.isfinite(value):
    return "not finite"
  if value == int(value) and abs(value) < 1e15:
    return f"{int(value):,}".replace(",", "\u2009")
  if abs(value) >= 1e4:
    return f"{value:,.0f}".replace(",", "\u2009")
  return f"{value:.4g}"


def _unit(name):
  """The unit that a figure's name implies, or nothing."""
  if "psnr" in name:
    return "dB"
  return "bits" if "bits" in name or "entropy" in name else ""


def _duration(seconds):
  if seconds is None:
    return "–"
  if seconds < 120:
    return f"{seconds:.3g} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _memory(value):
  if value is None:
    return "–"
  return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _read_json(path, default, remedy="copy it back from where the run was"):
  """Returns the JSON object in a file, or default without one; UserError if it is damaged."""
  if not path.exists():
    return default
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
      raise ValueError("it holds no object")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged ({first_line(error)}): {remedy}") from error
  return value


def _read_summary(path):
  """Returns a stage's summary.json, None without one; UserError for values of other types."""
  remedy = "delete it, and the training command makes it again"
  summary = _read_json(path, None, remedy)
  if summary is not None and not _is_summary(summary):
    raise UserError(f"{path} is damaged (a value has another type): {remedy}")
  return summary


def _is_summary(summary):
  """Returns whether the values of a summary that the page shows have their types."""
  figures, best = summary.get("figures", {}), summary.get("best") or _NO_BEST
  collapses = summary.get("collapses", [])
  if not (isinstance(figures, dict) and isinstance(best, dict) and isinstance(collapses, list)):
    return False
  numbers = [summary.get(name) for name in _SUMMARY_NUMBERS] + [*figures.values()]
  return (
    all(number is None or isinstance(number, int | float) for number in numbers)
    and all(isinstance(text, str) for text in collapses)
    and all(isinstance(best.get(name), type(value)) for name, value in _NO_BEST.items())
  )


def finite(value):
  """Returns a value with None in place of numbers that JSON cannot hold (NaN, infinity)."""
  if isinstance(value, dict):
    return {name: finite(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return [finite(inner) for inner in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
