"""The largest costs in a trace of jax.profiler: what a device spends its time on."""

import re
from collections import Counter
from pathlib import Path

import jax

_NUMBER = re.compile(r"([._]\d+)+$")  # fusion.12 and fusion.13 are one kind
_HOLDS_OTHERS = ("while", "conditional", "call", "async-start")  # whose own events count already


def largest(folder, count=3):
  """Returns the operations that take most of the devices' time in the newest trace under a folder.

  Operations that differ by their number alone count together.

  Returns:
    [{"name", "fraction": of the time of all operations}], the largest first; fewer than `count` if
    there are fewer, [] without a trace.
  """
  paths = sorted(Path(folder).glob("plugins/profile/*/*.xplane.pb"))
  if not paths:
    return []
  times = Counter()
  for event in _operations(jax.profiler.ProfileData.from_file(str(paths[-1]))):
    times[_NUMBER.sub("", event.name)] += event.duration_ns
  for name in _HOLDS_OTHERS:
    times.pop(name, None)
  total = sum(times.values())
  return [{"name": name, "fraction": time / total} for name, time in times.most_common(count)]


def _operations(data):
  """Yields the events of operations: a TPU's XLA Ops, a GPU's streams; of a CPU the ones that name
  an operation of XLA's."""
  for plane in data.planes:
    lines = list(plane.lines)
    if plane.name.startswith("/device:"):
      chosen = [line for line in lines if line.name == "XLA Ops"]
      for line in chosen or [line for line in lines if line.name.startswith("Stream")]:
        yield from line.events
    elif plane.name == "/host:CPU":
      for line in lines:
        yield from (event for event in line.events if any(k == "hlo_op" for k, _ in event.stats))
