"""What a compiled program moves, read from its HLO text: bytes to and from memory, and collectives.

XLA's cost_analysis counts the body of a loop once, however often it runs, and no collectives;
jax.experimental.roofline counts a scan once too, no fusion, and no collectives that the compiler
adds (docs/planning.md compares them on one plan). Here a loop counts as often as it runs: as its
known trip count says, or the constant that its condition compares the counter with. A loop without
either counts once and is reported. Of a conditional its costliest branch counts.

Bytes are those of operands and results of every instruction outside fusions. Buffers that the TPU's
compiler keeps on the chip, marked S(1) in the text, are not in memory and move nothing. Where an
array is only sliced, gathered or updated in place, the slice counts.
"""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

_COLLECTIVE = re.compile(
  r"(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
  r"|collective-broadcast)(-start)?"
)
# Instructions that move nothing, or whose first half (-start) moved it.
_STILL = re.compile(
  r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id|iota"
  r"|opt-barrier|add-dependency|.*-done"
)
_WIDTHS = {"pred": 1, "token": 0, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^{}]*?(?:S\((\d+)\))?\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=" + _IOTA)
_MESH = re.compile(
  r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\]"
  r"(?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(.*?\})\}")


class Collective(NamedTuple):
  """A kind of collective in a group of devices.

  kind: "all-reduce" and so on. group: the devices of the first such group; two of a permute.
  payload: bytes of its operands on one device.
  """

  kind: str
  group: tuple[int, ...]
  payload: float

  def sent(self):
    """Returns the bytes that a device sends, by the algorithms that send least."""
    n = len(self.group)
    factor = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1, "collective-permute": 1}
    return self.payload * factor.get(self.kind, (n - 1) / n)


class Costs(NamedTuple):
  """Costs of one run of a program on one device.

  memory_bytes: read from and written to memory. collectives: {Collective: how often it runs}.
  unknown_loops: loops that counted once because their length is not in the text.
  """

  memory_bytes: float
  collectives: Counter
  unknown_loops: int

  def plus(self, other, times=1):
    """Returns self + times × other."""
    more = Counter({c: n * times for c, n in other.collectives.items()})
    return Costs(
      self.memory_bytes + times * other.memory_bytes,
      self.collectives + more,
      self.unknown_loops + other.unknown_loops,
    )


def measure(text, devices):
  """Returns the Costs of a module's HLO text that was compiled for this many devices."""
  return _Module(text, devices).run()


class _Module:
  """A parsed program. Nothing is counted before run()."""

  def __init__(self, text, devices):
    self.computations, self.entry = parse(text)
    self.devices = devices
    self.channels = set()  # one collective may stand in several pieces of the program
    self.of = functools.cache(self._of)
    self.reads = functools.cache(self._reads)

  def run(self):
    return self.of(self.entry)

  def _of(self, name):
    """Returns the Costs of one run of a computation."""
    total = Costs(0.0, Counter(), 0)
    for instruction in self.computations[name].values():
      total = total.plus(self._of_instruction(name, instruction))
    return total

  def _of_instruction(self, where, instruction):
    opcode = instruction.opcode
    if opcode == "while":
      (body,), times = instruction.called("body"), self._trips(instruction)
      known = self.of(body)._replace(unknown_loops=self.of(body).unknown_loops + (times is None))
      return Costs(0.0, Counter(), 0).plus(known, times or 1)
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
    return Costs(self._moved(where, instruction), inner, 0)

  def _trips(self, loop):
    """Returns how often a loop runs, or None."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    condition = self.computations[loop.called("condition")[0]].values()
    limits = {int(i.rest) for i in condition if i.opcode == "constant" and i.rest.isdecimal()}
    root = next(i for i in condition if i.is_root)
    return limits.pop() if len(limits) == 1 and root.opcode in ("compare", "fusion") else None

  # -- Memory --------------------------------------------------------------------------------------

  def _moved(self, where, instruction):
    """Returns the bytes that an instruction reads from memory and writes to it."""
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
    """Returns the bytes that an instruction reads of the operand at a position, of `size` bytes."""
    first = position == 0
    if user.opcode in ("dynamic-slice", "gather", "slice") and first:
      return min(size, sum(s.bytes for s in user.shapes))
    if user.opcode == "dynamic-update-slice" and first:
      return 0.0
    if user.opcode == "fusion":
      return min(size, self.reads(user.called("calls")[0], position, size))
    return size

  def _reads(self, name, position, size):
    """Returns the same for a parameter of a fused computation."""
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
    """Returns the bytes that an instruction writes to memory."""
    sizes = self._sizes(self.computations[where], instruction)
    if len(sizes) != len(instruction.shapes):
      sizes = [s.bytes for s in instruction.shapes]
    return sum(n for n, s in zip(sizes, instruction.shapes, strict=True) if s.in_memory)

  def _sizes(self, computation, instruction):
    """Returns the bytes written for each array of a result; for updates in place, the update's."""
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
    """Returns the collectives in a computation that a fusion or an asynchronous call runs."""
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
    group = group_of(instruction.rest, self.devices)
    return Counter({Collective(kind, group, payload): 1}) if len(group) > 1 else Counter()


# -- The text of a program -------------------------------------------------------------------------


class Shape(NamedTuple):
  """Size of an array in bytes, and whether it lies in memory (not on the chip)."""

  bytes: float
  in_memory: bool


class Instruction(NamedTuple):
  """One line of the text.

  shapes: of the arrays of its result; operands: their names; rest: the text after the operands.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  def called(self, key):
    """Returns the names of the computations under an attribute, such as body."""
    match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
    return _NAME.findall(match[1]) if match else []


def _shapes(text):
  found = []
  for kind, sides, space in _SHAPE.findall(text):
    width = _WIDTHS.get(kind)
    if width is None:
      bits = re.search(r"\d+", kind)
      width = int(bits[0]) / 8 if bits else 0
    count = math.prod(int(side) for side in sides.split(",") if side)
    found.append(Shape(count * width, space in ("", "0")))
  return tuple(found)


def parse(text):
  """Returns ({computation: {name: Instruction}}, the entry's name)."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      root, name, shape, opcode, rest = match.groups()
      inside, _, after = _split_operands(rest)
      operands = tuple(_NAME.findall(inside)) if opcode != "parameter" else (inside,)
      value = inside if opcode == "constant" else after
      current[name] = Instruction(name, _shapes(shape), opcode, operands, value, bool(root))
  return computations, entry


def _split_operands(text):
  """Returns the text before and after the parenthesis that closes the operands."""
  depth = 1
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return text[:i], ")", text[i + 1 :]
  return text, "", ""


def group_of(text, devices):
  """Returns the first group of devices that talk to each other."""
  if match := _PAIRS.search(text):
    pairs = re.findall(r"(\d+),(\d+)", match[1])
    return next(((int(a), int(b)) for a, b in pairs if a != b), ())
  if match := _GROUP.search(text):
    return _numbers(match[1])
  if match := _GROUPS.search(text):
    size = math.prod(_numbers(match[1])[1:])
    return tuple(_iota(match[2], match[3])(i) for i in range(size))
  if match := _MESH.search(text):
    axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    used = re.findall(r"'(\w+)'", match[3])
    order = sorted(range(len(axes)), key=lambda i: list(axes)[i] in used)
    place = _iota(",".join(axes.values()), ",".join(map(str, order)))
    ids = re.fullmatch(_IOTA, match[2] or "")
    device = _iota(*ids.groups()) if ids else lambda i: i
    if match[2] and not ids:
      device = _numbers(match[2].strip("[]")).__getitem__
    return tuple(device(place(i)) for i in range(math.prod(int(axes[a]) for a in used)))
  return tuple(range(devices))


def _numbers(text):
  return tuple(int(n) for n in text.split(","))


def _iota(sides, order):
  """Returns i → entry i of the numbers 0, 1, … as an array of those sides, with transposed axes."""
  sides = _numbers(sides)
  order = _numbers(order) if order else range(len(sides))

  def entry(index):
    place = [0] * len(sides)
    for axis in reversed(order):
      index, place[axis] = divmod(index, sides[axis])
    flat = 0
    for side, at in zip(sides, place, strict=True):
      flat = flat * side + at
    return flat

  return entry
