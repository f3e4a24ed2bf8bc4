"""Runs the pieces of an accelerator's day that are left; launch/accelerator_day.sh has the flags.

Of every piece OUT holds NAME.json once it is done ({"command", "seconds", "results": the JSON
objects that it printed}), NAME.failed.json if no way of running it worked, and NAME.progress.json
while it is not finished. logs/NAME.log has all that it printed.
"""

import argparse
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter

import pieces as day_pieces

GRACE = 50  # seconds that a training may take to save, after SIGTERM
LEAST = 20  # seconds, under which nothing is begun
LEFT = 3  # the status where something is left to do
STOPPED = 128 + signal.SIGTERM  # as a training ends that was saved


def parse(argv):
  """Returns the values of the flags."""
  parser = argparse.ArgumentParser(prog="accelerator_day.sh", allow_abbrev=False)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
  parser.add_argument("--wheels", type=pathlib.Path)
  parser.add_argument("--seconds", type=float, default=day_pieces.LONGEST)
  parser.add_argument("--hours", type=float, default=4.0)
  parser.add_argument("--only", default="")
  for name in ("--retry", "--tiny", "--dry_run"):
    parser.add_argument(name, action="store_true")
  return parser.parse_args(argv)


def main(argv):
  """Runs what fits into --seconds; returns the status."""
  flags = parse(argv)
  out = flags.out.resolve()
  scratch = pathlib.Path(os.environ.get("SCRATCH", out / "scratch")).resolve()
  day = day_pieces.Day(out, scratch, flags.data.resolve(), flags.hours, flags.tiny)
  only = [name for name in flags.only.split(",") if name]
  if unknown := set(only) - {piece.name for piece in day_pieces.pieces(day)}:
    print(f"--only={min(unknown)} is no piece; --dry_run lists them", file=sys.stderr)
    return 2
  if flags.dry_run:
    show(day, only)
    return 0
  for folder in (out, scratch, out / "logs", out / "pictures"):
    folder.mkdir(parents=True, exist_ok=True)
  for path in out.glob("*.failed.json") if flags.retry else ():
    path.unlink()
  if flags.wheels and (code := install(flags.wheels, scratch)):
    return code
  return run(day, only, time.monotonic() + flags.seconds)


def install(wheels, scratch):
  """Installs a folder's wheels, once, where they are in nobody's way; returns pip's status."""
  target = scratch / "packages"
  os.environ["PYTHONPATH"] = f"{target}:{os.environ.get('PYTHONPATH', '')}"
  files = sorted(map(str, wheels.glob("*.whl")))
  if not files:
    print(f"--wheels={wheels} has no wheel", file=sys.stderr)
    return 2
  if target.exists():
    return 0
  part = scratch / "packages.part"
  words = ["pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade", f"--target={part}"]
  code = subprocess.run([sys.executable, "-m", *words, *files]).returncode
  if code == 0:
    part.rename(target)
  return code


def show(day, only):
  """Prints every piece: its time, what it needs, its command; the other ways where it fails."""
  states = state(day)
  for piece in chosen(day, only):
    kind = "a training, " if piece.training else ""
    needs = f", after {', '.join(piece.needs)}" if piece.needs else ""
    print(f"# {piece.name} ({states[piece.name]}): {kind}at most {piece.seconds:.0f} s{needs}")
    for i, way in enumerate(piece.ways):
      print(("#   else " if i else "") + line(way))


def line(words):
  """Returns a command line in one line."""
  return shlex.join(" ".join(word.split()) for word in words)


def chosen(day, only):
  """Returns the pieces of that name, or all; trainings have their steps once they are known."""
  return [piece for piece in day_pieces.pieces(day) if not only or piece.name in only]


def state(day):
  """Returns {name: "done", "failed", "left out" (for want of data, or of a piece that it needs),
  "waiting" (for one) or "ready"} of all pieces."""
  states = {}
  data = {t.name: t.data for t in day_pieces.trainings(day)}
  prepared = (day.out / "data.json").exists()
  for piece in day_pieces.pieces(day):
    before = {states[name] for name in piece.needs}
    training = next((name for name in data if piece.name.startswith(name)), None)
    absent = [name for name in data.get(training, ()) if not (day.scratch / name).exists()]
    if (day.out / f"{piece.name}.json").exists():
      states[piece.name] = "done"
    elif (day.out / f"{piece.name}.failed.json").exists():
      states[piece.name] = "failed"
    elif before & {"failed", "left out"} or (prepared and absent):
      states[piece.name] = "left out"
    else:
      states[piece.name] = "ready" if before <= {"done"} else "waiting"
  return states


def run(day, only, end):
  """Runs pieces until `end`, of time.monotonic(); returns the status."""
  while True:
    states = state(day)
    ready = [piece for piece in chosen(day, only) if states[piece.name] == "ready"]
    seconds = end - time.monotonic()
    if not ready or seconds < LEAST:
      break
    run_piece(day, ready[0], min(seconds, day_pieces.LONGEST))
  counts = Counter(states[piece.name] for piece in chosen(day, only))
  print(", ".join(f"{count} {name}" for name, count in counts.items()), flush=True)
  return LEFT if ready else 0


# -- One piece -------------------------------------------------------------------------------------


def run_piece(day, piece, limit):
  """Runs a piece for at most `limit` seconds, and writes what came of it."""
  progress = day.out / f"{piece.name}.progress.json"
  now = json.loads(progress.read_text()) if progress.exists() else dict(seconds=0, tries=0, way=0)
  if piece.training:
    limit = min(limit, max(LEAST, piece.seconds - now["seconds"]))
  end = time.monotonic() + limit
  for number, way in list(enumerate(piece.ways))[now["way"] :]:
    now["way"], began = number, time.monotonic()
    print(f"{piece.name}: {line(way)[:200]}", flush=True)
    code, printed = start(day, piece, way, end - began)
    now["seconds"] += time.monotonic() - began
    print(f"{piece.name}: status {code} after {time.monotonic() - began:.0f} s", flush=True)
    if code in (0, STOPPED):
      break
  now["tries"] += limit > day_pieces.LONGEST / 2  # with less time it had no chance
  again = now["seconds"] < piece.seconds - LEAST if piece.training else now["tries"] < 2
  if code == 0:
    write(day.out / f"{piece.name}.json", now | {"command": way, "results": printed})
  elif code == STOPPED and again:
    write(progress, now)
  else:
    log = (day.out / "logs" / f"{piece.name}.log").read_text(errors="replace")
    now |= {"command": way, "status": code, "tail": log.splitlines()[-5:]}
    write(day.out / f"{piece.name}.failed.json", now)


def start(day, piece, way, limit):
  """Runs a command line, SIGTERM after `limit` seconds; returns (status, JSON objects printed)."""
  log = day.out / "logs" / f"{piece.name}.log"
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(day.scratch / "compiled")}
  environment.setdefault("IMGTX_CACHE", str(day.scratch / "features"))
  with open(log, "ab") as file:
    first = file.tell()
    process = subprocess.Popen(
      way, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
      code = process.wait(max(1.0, limit - GRACE * (limit > 2 * GRACE)))
    except subprocess.TimeoutExpired:
      code = stop(process)
  with open(log, "rb") as file:
    file.seek(first)
    return code, objects(file.read().decode(errors="replace"))


def stop(process):
  """Ends a process and those that it has started, by force where it does not end by itself; returns
  STOPPED, or 0 if it was just done."""
  os.killpg(process.pid, signal.SIGTERM)
  try:
    code = process.wait(GRACE)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
  return STOPPED if code else 0


def objects(text):
  """Returns the JSON objects among the lines of a text."""
  found = []
  for line in text.splitlines():
    if line.startswith("{"):
      try:
        found.append(json.loads(line))
      except ValueError:
        pass
  return found


def write(path, value):
  """Writes a value as JSON, all of it or nothing."""
  part = path.with_name(f"{path.name}.part")
  part.write_text(json.dumps(value, indent=1))
  part.rename(path)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
