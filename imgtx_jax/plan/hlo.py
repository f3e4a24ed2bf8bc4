"""The text of a compiled program (HLO), parsed: computations, instructions, groups of devices."""

import math
import re
from typing import NamedTuple

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


class Shape(NamedTuple):
  """Bytes of an array, and whether it lies in memory (not on the chip)."""

  bytes: float
  in_memory: bool


class Instruction(NamedTuple):
  """One line; shapes of its result, names of its operands, and the rest of the text."""

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  def called(self, key):
    """Names of the computations under an attribute, such as body."""
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
  """({computation: {name: Instruction}}, the entry's name)."""
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
  """What stands before and after the parenthesis that closes the operands."""
  depth = 1
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return text[:i], ")", text[i + 1 :]
  return text, "", ""


def group_of(text, devices):
  """The first group of devices that talk to each other."""
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
  """Of the numbers 0, 1, … as an array with those sides, its axes in that order: entry i."""
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
