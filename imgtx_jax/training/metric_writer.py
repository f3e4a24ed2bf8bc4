"""The metrics of one stage: JSON lines, and TensorBoard events beside them."""

import json
import math
from pathlib import Path

from tensorboardX import SummaryWriter

from imgtx_jax.io.atomic import explain_disk, write_atomically

_FILE = "metrics.jsonl"
_FALL = "fall"  # key of lines that training has fallen back from


class MetricLog:
  """Appends to a stage's metrics.

  directory: the stage's. writes: False in processes that leave writing to the first.
  """

  def __init__(self, directory, *, writes=True):
    self._directory, self._writes = Path(directory), writes
    if writes:
      self._directory.mkdir(parents=True, exist_ok=True)
    self._path = self._directory / _FILE
    self._events = None
    self._first_step = 0
    if writes and self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
      self._rewrite(_parse(self._path))  # a kill or a full disk left half a line

  def write(self, step, seconds, metrics):
    """Writes one line: the step, seconds since the stage's first start, and {name: scalar}."""
    if not self._writes:
      return
    values = {name: float(f"{float(value):.9g}") for name, value in metrics.items()}
    record = {"step": int(step), "seconds": round(float(seconds), 3)}
    # JSON knows no NaN; read_metrics gives it back.
    record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
    with explain_disk(self._path):
      with open(self._path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
      events = self._open_events()
      for name, value in values.items():
        if math.isfinite(value):
          events.add_scalar(name, value, int(step))
      events.flush()

  def truncate(self, step, falls=0):
    """Deletes every line after `step`, from which training goes on, here and in TensorBoard.

    Lines that set_aside marked for the first `falls` falls stay.
    """

    def resumed(record):
      fall = record.get(_FALL)
      return record["step"] <= step if fall is None else fall <= falls

    self._purge(step)
    if self._writes and self._path.exists():
      self._rewrite(record for record in _parse(self._path) if resumed(record))

  def set_aside(self, step, fall):
    """Marks every line after `step`, to which training falls back, with "fall": its number, from 1.

    They are deleted in TensorBoard.
    """
    self._purge(step)
    if self._writes and self._path.exists():
      self._rewrite(
        record | {_FALL: fall} if record["step"] > step and _FALL not in record else record
        for record in _parse(self._path)
      )

  def close(self):
    """Closes the events file; a later write opens another."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def _open_events(self):
    if self._events is None:
      # purge_step tells TensorBoard to forget what an earlier events file holds from there on. The
      # suffix keeps two files of the same second apart.
      self._events = SummaryWriter(
        logdir=str(self._directory),
        purge_step=self._first_step or None,
        filename_suffix=f".{self._first_step}",
      )
    return self._events

  def _purge(self, step):
    """The next events file tells TensorBoard to forget what comes after `step`."""
    self.close()
    self._first_step = int(step) + 1

  def _rewrite(self, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(self._path, text.encode())


def read_metrics(directory, set_aside=False):
  """Returns a stage's metrics as one dict per line, in order, NaN for null; [] if there are none.

  set_aside: return the lines that MetricLog.set_aside marked instead of the others.
  """
  path = Path(directory) / _FILE
  if not path.exists():
    return []
  return [
    {name: math.nan if value is None else value for name, value in record.items()}
    for record in _parse(path)
    if (_FALL in record) == set_aside
  ]


def _parse(path):
  """The whole lines of path; half a line, as a killed writer leaves it, is passed over."""
  records = []
  for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(record, dict) and isinstance(record.get("step"), int) and _plain(record):
      records.append(record)
  return records


def _plain(record):
  """Returns whether all values are numbers, or null."""
  return all(value is None or isinstance(value, int | float) for value in record.values())
