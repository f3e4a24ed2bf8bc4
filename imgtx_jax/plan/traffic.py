"""What a compiled program moves, read from its HLO text: bytes to and from memory, and collectives.

XLA's own cost analysis counts a loop's body once; here it counts as often as the loop runs: as its
known trip count says, or the constant that its condition compares the counter with. A loop without
either counts once and is reported. Of a conditional its costliest branch counts.

Bytes are those of operands and results of every instruction that the program runs by itself, not
inside a fusion. Buffers that the TPU's compiler has put on the chip, marked S(1) in the text, are
not in memory and move nothing. Of what is only sliced, gathered or updated, the slice counts.
"""

import functools
import re
from collections import Counter
from typing import NamedTuple

from imgtx_jax.plan import hlo

_COLLECTIVE = re.compile(
  r"(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
  r"|collective-broadcast)(-start)?"
)
# Instructions that move nothing, or whose halves before moved it.
_STILL = re.compile(
  r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id|iota"
  r"|opt-barrier|add-dependency|.*-done"
)


class Collective(NamedTuple):
  """A kind of collective among the devices of `group` (the first such group; two of a permute);
  payload: bytes of its operands on one device."""

  kind: str
  group: tuple[int, ...]
  payload: float

  def sent(self):
    """Bytes that a device sends, by the algorithms that send least."""
    n = len(self.group)
    factor = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1, "collective-permute": 1}
    return self.payload * factor.get(self.kind, (n - 1) / n)


class Traffic(NamedTuple):
  """Of one run of a program on one device: bytes to and from memory, {Collective: how often}, and
  how many loops counted once, for nobody says how often they run."""

  memory_bytes: float
  collectives: Counter
  unknown_loops: int

  def plus(self, other, times=1):
    """With another's, so many times."""
    more = Counter({c: n * times for c, n in other.collectives.items()})
    return Traffic(
      self.memory_bytes + times * other.memory_bytes,
      self.collectives + more,
      self.unknown_loops + other.unknown_loops,
    )


def measure(text, devices):
  """The Traffic of a module's text, compiled for so many devices."""
  return _Module(text, devices).run()


class _Module:
  """A parsed program. Nothing is counted before run()."""

  def __init__(self, text, devices):
    self.computations, self.entry = hlo.parse(text)
    self.devices = devices
    self.channels = set()  # one collective may stand in several pieces of the program
    self.of = functools.cache(self._of)
    self.reads = functools.cache(self._reads)

  def run(self):
    return self.of(self.entry)

  def _of(self, name):
    """The Traffic of one run of a computation."""
    total = Traffic(0.0, Counter(), 0)
    for instruction in self.computations[name].values():
      total = total.plus(self._of_instruction(name, instruction))
    return total

  def _of_instruction(self, where, instruction):
    opcode = instruction.opcode
    if opcode == "while":
      (body,), times = instruction.called("body"), self._trips(instruction)
      known = self.of(body)._replace(unknown_loops=self.of(body).unknown_loops + (times is None))
      return Traffic(0.0, Counter(), 0).plus(known, times or 1)
    if opcode == "conditional":
      names = instruction.called("branch_computations")
      names = names or instruction.called("true_computation") + instruction.called(
        "false_computation"
      )
      return max((self.of(n) for n in names), key=lambda t: t.memory_bytes)
    if opcode == "call":
      return self.of(instruction.called("to_apply")[0])
    inner = Counter()
    for called in instruction.called("calls"):
      inner += self._collectives(called)
    inner += self._collective(where, instruction)
    return Traffic(self._moved(where, instruction), inner, 0)

  def _trips(self, loop):
    """How often a loop runs, or None."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    condition = self.computations[loop.called("condition")[0]].values()
    limits = {int(i.rest) for i in condition if i.opcode == "constant" and i.rest.isdecimal()}
    root = next(i for i in condition if i.is_root)
    return limits.pop() if len(limits) == 1 and root.opcode in ("compare", "fusion") else None

  # -- Memory --------------------------------------------------------------------------------------

  def _moved(self, where, instruction):
    """Bytes that an instruction reads from memory and writes to it."""
    if _STILL.fullmatch(instruction.opcode):
      return 0.0
    if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.rest:
      return 0.0
    computation = self.computations[where]
    if instruction.opcode.endswith("-start"):  # of both ends of a copy, the smaller
      ends = instruction.shapes[:2]
      return min((s.bytes for s in ends), default=0.0) * sum(s.in_memory for s in ends)
    moved = self._written(where, instruction)
    for i, operand in enumerate(instruction.operands):
      source = computation.get(operand)
      if source is None or len(source.shapes) != 1 or not source.shapes[0].in_memory:
        continue
      moved += self._read(instruction, i, source.shapes[0].bytes)
    return moved

  def _read(self, user, position, size):
    """Bytes that an instruction reads of its operand there, of `size` bytes."""
    first = position == 0
    if user.opcode in ("dynamic-slice", "gather", "slice") and first:
      return min(size, sum(s.bytes for s in user.shapes))
    if user.opcode == "dynamic-update-slice" and first:
      return 0.0
    if user.opcode == "fusion":
      return min(size, self.reads(user.called("calls")[0], position, size))
    return size

  def _reads(self, name, position, size):
    """The same of a fused computation's parameter."""
    computation = self.computations[name]
    return sum(
      self._through(computation, i.name, size)
      for i in computation.values()
      if i.opcode == "parameter" and i.operands == (str(position),)
    )

  def _through(self, computation, source, size):
    total = 0.0
    for user in computation.values():
      for position, operand in enumerate(user.operands):
        if operand != source or user.opcode == "parameter":
          continue
        if user.opcode == "bitcast":
          total += self._through(computation, user.name, size)
        elif user.opcode != "tuple":
          total += self._read(user, position, size)
    return total

  def _written(self, where, instruction):
    """Bytes that an instruction writes to memory."""
    sizes = self._sizes(self.computations[where], instruction)
    if len(sizes) != len(instruction.shapes):
      sizes = [s.bytes for s in instruction.shapes]
    return sum(n for n, s in zip(sizes, instruction.shapes, strict=True) if s.in_memory)

  def _sizes(self, computation, instruction):
    """Bytes written for each array of a result: of updates in place, the update."""
    if instruction.opcode == "dynamic-update-slice":
      return [sum(s.bytes for s in computation[instruction.operands[1]].shapes)]
    if instruction.opcode == "fusion":
      fused = self.computations[instruction.called("calls")[0]]
      return self._sizes(fused, next(i for i in fused.values() if i.is_root))
    if instruction.opcode == "bitcast":
      return self._sizes(computation, computation[instruction.operands[0]])
    if instruction.opcode == "tuple":
      return [n for o in instruction.operands for n in self._sizes(computation, computation[o])]
    return [s.bytes for s in instruction.shapes]

  # -- Collectives ---------------------------------------------------------------------------------

  def _collectives(self, name):
    """Those in a computation that another calls as a whole: a fusion, or an asynchronous one."""
    found = Counter()
    for instruction in self.computations[name].values():
      found += self._collective(name, instruction)
      for called in instruction.called("calls"):
        found += self._collectives(called)
    return found

  def _collective(self, where, instruction):
    match = _COLLECTIVE.fullmatch(instruction.opcode)
    if not match:
      return Counter()
    channel = re.search(r"channel_id=(\d+)", instruction.rest)
    if channel and channel[1] in self.channels:
      return Counter()
    self.channels.add(channel and channel[1])
    kind, computation = match[1], self.computations[where]
    if kind == "all-reduce" and where.startswith("all-reduce-scatter"):
      kind = "reduce-scatter"  # of which the TPU's compiler keeps an all-reduce and a slice
    payload = sum(s.bytes for o in instruction.operands for s in computation[o].shapes)
    group = hlo.group_of(instruction.rest, self.devices)
    return Counter({Collective(kind, group, payload): 1}) if len(group) > 1 else Counter()
