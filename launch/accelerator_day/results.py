"""Writes docs/results.md's section from an accelerator's day: python results.py OUT [--write PAGE].

Prints the section, or with --write puts it into the page, in the place of the one that is there.
"""

import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from imgtx_jax.plan import chips, gpus  # noqa: E402

TITLE = "An accelerator's day"
_GIB = 2**30
_FIGURES = ("psnr", "codes_used", "bits_per_code", "class_accuracy", "patch_grid_ratio")


def section(out):
  """Returns the section's lines from a day's folder."""
  done = {p.stem: json.loads(p.read_text()) for p in sorted(out.glob("*.json")) if _is_piece(p)}
  machine = next(iter(done.get("environment", {}).get("results", [])), {})
  kind = machine.get("device_kind", "an unknown device")
  lines = [f"## {TITLE}", ""]
  lines += [
    f"`bash launch/accelerator_day.sh --out DIR --data DIR` on {machine.get('devices', '?')} × "
    f"{kind}, jax {machine.get('jax', '?')}, Python {machine.get('python', '?')}."
  ]
  parts = (parity(done), kernels(done), steps(done, kind), decoding(done), trainings(done, out))
  for part in (*parts, failures(out)):
    lines += ["", *part] if part else []
  return lines


def _is_piece(path):
  return not re.search(r"\.(failed|progress|steps)\.json$", path.name)


def table(title, head, rows):
  """Returns the lines of a table, or [] without rows."""
  if not rows:
    return []
  cells = [head, ["---"] * len(head), *rows]
  return [f"### {title}", "", *(f"| {' | '.join(map(str, row))} |" for row in cells)]


# -- The parts -------------------------------------------------------------------------------------


def parity(done):
  """Returns the table of steps against the CPU's."""
  rows = []
  for name in (n for n in done if n.startswith("parity")):
    for result in done[name]["results"]:
      for stage, found in result["stages"].items():
        if "error" in found:
          rows.append([stage, found["error"], "", ""])
          continue
        worst = found["bfloat16"]
        rows.append(
          [
            stage,
            _percent(found["float32"]["loss"]),
            _percent(worst["loss"]),
            f"{worst['worst']}: {_percent(worst['difference'])}",
          ]
        )
  head = ["stage", "loss, float32", "loss, bfloat16", "the metric that differs most, bfloat16"]
  return table("First steps against the CPU's in float32, largest difference", head, rows)


def kernels(done):
  """Returns the table of attention kernels."""
  rows = []
  for name in (n for n in done if n.startswith("parity")):
    for result in done[name]["results"]:
      for kernel, found in result["kernels"].items():
        text = [found.get("error"), ""]
        if "error" not in found:
          text = [_percent(found["logits"]), f"{found['codes']:.1%}"]
        rows.append([name.removeprefix("parity").strip("-") or "quickstart", kernel, *text])
  head = ["networks of", "attention", "logits differ by", "equal sampled codes"]
  return table("Attention kernels, random weights, bfloat16", head, rows)


def steps(done, kind):
  """Returns the table of the speed of training steps."""
  peak, rows = peak_flops(kind), []
  for name in (n for n in done if n.startswith("training-")):
    for r in done[name]["results"]:
      rate = r["flops_per_step"] / r["step_seconds"] / r["devices"]
      costs = ", ".join(f"{c['name']} {c['fraction']:.0%}" for c in r.get("largest_costs", ()))
      rows.append(
        [
          name.removeprefix("training-"),
          r["batch_size"],
          f"{1 / r['step_seconds']:.3g}",
          f"{r['images_per_second']:,.4g}",
          f"{rate / 1e12:.3g}",
          f"{rate / peak:.2f}" if peak else "",
          f"{r['model_flops_utilisation']:.2f}",
          f"{r['peak_memory_bytes'] / _GIB:.1f}",
          costs,
        ]
      )
  head = ["step", "batch", "steps/s", "images/s", "model TFLOP/s", "of the peak"]
  head += ["of products alone", "memory, GiB", "largest costs"]
  return table("Training steps at 256×256", head, rows)


def decoding(done):
  """Returns the table of the speed of decoding."""
  rows = []
  for name in (n for n in done if n.startswith("decoding-")):
    for r in done[name]["results"]:
      cells = [name.split("-")[1].upper(), r["batch_size"], f"{r['images_per_second']:.3g}"]
      rows.append([*cells, f"{r['ms_per_code']:.3g}", f"{r['fraction_of_floor']:.2f}"])
  head = ["GPT", "images", "images/s", "ms a code", "of the floor (weights read once a code)"]
  return table("Decoding 256 codes", head, rows)


def trainings(done, out):
  """Returns the tables of the trainings' stages and of their dials."""
  rows, dials = [], []
  for path in sorted(out.glob("*/*/summary.json")):
    summary, name = json.loads(path.read_text()), path.parent.parent.name
    figures = summary.get("figures", {})
    text = ", ".join(f"{k} {figures[f'validation/{k}']:.4g}" for k in _shown(figures))
    cells = [name, path.parent.name, summary["steps"], f"{summary['seconds'] / 60:.0f}"]
    rows.append([*cells, f"{summary['images_per_second']:,.0f}", text])
  for path in sorted(out.glob("*-evaluation/sweep.json")):
    sweep = json.loads(path.read_text())
    for each in sweep["evaluations"]:
      values = ", ".join(f"{n} {r['value']:.4g}" for n, r in each["results"].items())
      dials.append([path.parent.name.removesuffix("-evaluation"), each["value"], values])
  head = ["training", "stage", "steps", "minutes", "images/s", "held out"]
  found = table("Trainings", head, rows)
  return found + ([""] if dials and found else []) + table("Dials", ["of", "k", "figures"], dials)


def _shown(figures):
  """Returns the names of a stage's figures that say most, four at most."""
  names = [k.removeprefix("validation/") for k in figures if k.startswith("validation/")]
  first = [name for name in _FIGURES if name in names]
  return (first + [name for name in names if name not in first])[:4]


def failures(out):
  """Returns the table of what failed."""
  rows = []
  for path in sorted(out.glob("*.failed.json")):
    failed = json.loads(path.read_text())
    last = (failed["tail"] or [""])[-1].replace("|", "/")
    rows.append([path.name.removesuffix(".failed.json"), failed["status"], last[:150]])
  return table("What failed", ["piece", "status", "its last line"], rows)


def peak_flops(kind):
  """Returns the published bfloat16 FLOP/s of a device kind, or None."""
  kind = kind.lower().replace(" lite", "e").replace("tpu v5", "tpu v5p").replace("v5pe", "v5e")
  rates = {**gpus.GPUS, **chips.CHIPS}
  return next((rates[name].flops for name in sorted(rates) if name in kind), None)


def _percent(value):
  return f"{100 * value:.2g} %"


# -- The page --------------------------------------------------------------------------------------


def into_page(text, lines):
  """Returns a page's text with the section in the place of the one that is there, or at its end."""
  new = "\n".join(lines) + "\n"
  start = text.find(f"## {TITLE}\n")
  if start < 0:
    entry = f"- [{TITLE}](#{re.sub('[^a-z ]', '', TITLE.lower()).replace(' ', '-')})\n"
    last = list(re.finditer(r"^- \[.*\]\(#.*\)\n", text, re.MULTILINE))
    if last:
      text = text[: last[-1].end()] + entry + text[last[-1].end() :]
    return text.rstrip("\n") + "\n\n" + new
  following = text.find("\n## ", start)
  return text[:start] + new + (text[following:] if following >= 0 else "")


def main(argv):
  """Prints the section, or writes it into a page."""
  parser = argparse.ArgumentParser(prog="results.py")
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--write", type=pathlib.Path)
  flags = parser.parse_args(argv)
  lines = section(flags.out)
  if flags.write:
    flags.write.write_text(into_page(flags.write.read_text(), lines))
  else:
    print("\n".join(lines))


if __name__ == "__main__":
  main(sys.argv[1:])
