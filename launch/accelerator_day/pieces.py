"""The pieces of an accelerator's day, in order: what each runs, and what must be there before.

Speed is measured at ImageNet's 256×256, on random images; trainings are at 64×64 and 96×96.
"""

import json
import math
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONGEST = 540  # seconds of a piece, or of one go of a training
_BATCHES = {"tokenizer": (128, 64, 32), "pretrain": (256, 128, 64), "finetune": (128, 64, 32)}
_ENVIRONMENT = """
import json, platform, jax
first = jax.devices()[0]
print(json.dumps({"python": platform.python_version(), "jax": jax.__version__,
  "devices": jax.device_count(), "device_kind": first.device_kind,
  "memory_bytes": (first.memory_stats() or {}).get("bytes_limit", 0)}))
"""


class Piece(NamedTuple):
  """One piece of the day.

  name: of its files. ways: its command lines, [[word]]; a later one is tried where the one before
  fails (a smaller batch). needs: names of pieces that must be done before. training: whether it
  saves and goes on after a SIGTERM; then seconds is its share of the day, else its time.
  """

  name: str
  ways: list[list[str]]
  needs: tuple[str, ...] = ()
  training: bool = False
  seconds: float = LONGEST


class Training(NamedTuple):
  """A training: its config and flags, the data that it needs, its part of the trainings' time, the
  parts of its stages in that and the most steps of each; the prefixes of its sample sheets."""

  name: str
  config: str
  flags: tuple[str, ...]
  data: tuple[str, ...]
  part: float
  stages: dict[str, tuple[float, int]]
  prefixes: tuple[int, ...] = ()


class Day(NamedTuple):
  """The folders of a day: results, unpacked data; the hours of its trainings; whether in small."""

  out: pathlib.Path
  scratch: pathlib.Path
  data: pathlib.Path
  hours: float
  tiny: bool


def command(module, *arguments):
  """Returns the command line of one of the package's commands."""
  return [sys.executable, "-m", f"imgtx_jax.{module}", *map(str, arguments)]


def config_flag(day, name):
  """Returns --config of a file in configs/; in small the tests' one."""
  if day.tiny:
    return f"--config={ROOT / 'tests' / 'tiny_config.py'}:tokenizer,pretrain,finetune"
  return f"--config={ROOT / 'configs' / name}"


def pieces(day):
  """Returns all pieces, most valuable first."""
  found = [Piece("environment", [[sys.executable, "-c", _ENVIRONMENT]])]
  found += [*_checks(day), *_speed(day)]
  found.append(Piece("data", [_data(day)]))
  for training in trainings(day):
    found += _pieces_of(day, training)
  return found


def _checks(day):
  """Yields five steps of every stage against the CPU's, and attention kernels among each other."""
  configs = {"parity": "quickstart.py", "parity-gan": "gan_vit.py:small"}
  configs |= {"parity-style": "style_small.py"}
  for name, config in configs.items():
    if not day.tiny:
      flags = () if name == "parity" else ("--classes=10",)
      yield Piece(name, [command("benchmark", "parity", config_flag(day, config), *flags)])
    elif name == "parity":
      small = f"--config={ROOT / 'tests' / 'tiny_config.py'}:pretrain"
      yield Piece(name, [command("benchmark", "parity", small, "--steps=2", "--classes=3")])


def _speed(day):
  """Yields the speed of steps and of decoding; in small of the smallest alone."""
  order = ("pretrain-l", "pretrain-xl", "finetune-l", "tokenizer-l", "pretrain-b", "finetune-b")
  for name in ("pretrain-b",) if day.tiny else order:
    stage, variant = name.rsplit("-", 1)
    words = ["benchmark", "training", config_flag(day, f"imagenet256.py:{variant}")]
    words += [f"--stage={stage}", "--classes=1000", f"--profile={day.out / 'traces' / name}"]
    words += ["--config.parallel.mode=jit", "--config.parallel.fsdp=1"]
    words += ["--steps=2"] if day.tiny else []
    batches = (16, 8) if day.tiny else _BATCHES[stage]
    ways = [command(*words, f"--config.{stage}.batch_size={size}") for size in batches]
    yield Piece(f"training-{name}", ways)
  for variant in ("b",) if day.tiny else ("l", "xl", "b"):
    words = ["benchmark", "sampling", config_flag(day, f"imagenet256.py:{variant}")]
    words += ["--classes=1000", "--steps=1" if day.tiny else "--steps=5"]
    for batch in (2,) if day.tiny else (8, 64):
      yield Piece(f"decoding-{variant}-{batch}", [command(*words, f"--batch={batch}")])


def _data(day):
  script = pathlib.Path(__file__).with_name("data.py")
  return [sys.executable, str(script), str(day.data), str(day.scratch)]


def trainings(day):
  """Returns the trainings of the day."""
  if day.tiny:
    stages = dict.fromkeys(("tokenizer", "pretrain", "finetune"), (0.3, 4))
    return [Training("emoji", "", ("--config.data.source=emoji",), (), 1.0, stages, (0, 16))]
  at = day.scratch
  folder = "--config.data.source=folder"
  stages = {"tokenizer": (0.3, 20_000), "pretrain": (0.3, 40_000), "finetune": (0.4, 20_000)}
  return [
    Training(
      "emoji",
      "quickstart.py",
      (folder, f"--config.data.path={at / 'emoji64'}", "--config.data.image_size=64"),
      ("emoji64",),
      0.15,
      {name: (part, 8_000) for name, (part, _) in stages.items()},
      (0, 16, 64, 256),
    ),
    Training(
      "tiny_imagenet",
      "tiny_imagenet.py:base",
      (folder, f"--config.data.path={at / 'tiny_imagenet'}"),
      ("tiny_imagenet",),
      0.6,
      stages,
      (0, 16, 64, 256),
    ),
    Training(
      "stylizer",
      f"style_small.py:{at / 'photos'},{at / 'styles'}",
      ("--config.tokenizer.batch_size=32", "--config.style.batch_size=16"),
      ("photos", "styles"),
      0.25,
      {"tokenizer": (0.25, 20_000), "style": (0.75, 40_000)},
    ),
  ]


def _pieces_of(day, training):
  """Yields a training's pieces: its speed, itself, its figures and its pictures."""
  config = config_flag(day, training.config)
  rate = [command("benchmark", "training", config, *training.flags, "--steps=5")]
  yield Piece(f"{training.name}-rate", rate, needs=("data",))
  work, share = day.out / training.name, 3600 * day.hours * training.part
  words = command("main", config, *training.flags, f"--workdir={work}", *steps_flags(day, training))
  before = (f"{training.name}-rate",)
  # More than its share, rather than nothing to show: its steps were chosen to fit.
  yield Piece(training.name, [words], needs=before, training=True, seconds=1.5 * share)
  sheets, needs = day.out / "pictures", (training.name,)
  if "style" in training.stages:
    words = ["stylize", f"--workdir={work}", f"--content={day.scratch / 'photos_shown'}"]
    words += [f"--style={day.scratch / 'styles_shown'}", f"--grid={sheets / 'stylizer.png'}"]
    words += [f"--out={sheets / 'stylizer'}"]
    yield Piece("stylizer-sheet", [command(*words)], needs=needs)
    return
  for k in training.prefixes:
    words = ["sample", f"--workdir={work}", f"--prefix={k}", "--num=64"]
    words += [f"--out={sheets / f'{training.name}-k{k}.png'}"]
    yield Piece(f"{training.name}-sheet-{k}", [command(*words)], needs=needs)
  ks = ",".join(map(str, training.prefixes))
  words = ["evaluate", f"--workdir={work}", f"--out={day.out / f'{training.name}-evaluation'}"]
  words += ["--network=vgg16", "--metrics=frechet,precision_recall", f"--sweep=prefix={ks}"]
  words += ["--num=16" if day.tiny else "--num=5000"]
  yield Piece(f"{training.name}-dial", [command(*words)], needs=needs)


def steps_flags(day, training):
  """Returns the flags of a training's steps, once its speed has been measured.

  They are chosen once: with other steps it would be another experiment.
  """
  chosen = day.out / f"{training.name}.steps.json"
  measured = day.out / f"{training.name}-rate.json"
  if not chosen.exists() and measured.exists():
    rates = {r["stage"]: r["step_seconds"] for r in json.loads(measured.read_text())["results"]}
    steps = {
      stage: _steps(3600 * day.hours * training.part * part / rates[stage], most)
      for stage, (part, most) in training.stages.items()
    }
    chosen.write_text(json.dumps(steps))
  if not chosen.exists():
    return []
  steps = json.loads(chosen.read_text())
  return [f"--config.{stage}.steps={count}" for stage, count in steps.items()]


def _steps(fitting, most):
  """Returns a round number of steps; four fifths of those that fit, for what is not a step."""
  count = min(most, max(4, 0.8 * fitting))
  unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
  return int(count // unit * unit)
