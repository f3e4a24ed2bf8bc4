import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from imgtx_jax.training import metric_writer


def test_metrics_come_back_in_order_and_unrounded(tmp_path):
  log = metric_writer.MetricLog(tmp_path)
  log.write(1, 0.5, {"loss": np.float32(0.1), "bad": np.float32(math.inf)})
  log.write(2, 1.0, {"loss": 7})
  log.close()
  first, second = metric_writer.read_metrics(tmp_path)
  assert np.float32(first["loss"]) == np.float32(0.1) and math.isnan(first["bad"])
  assert second == {"step": 2, "seconds": 1.0, "loss": 7.0}
  assert metric_writer.read_metrics(tmp_path / "absent") == []


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
  metric_writer.MetricLog(tmp_path).write(1, 0.0, {"loss": 1.0})
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 2, "lo')
  assert [line["step"] for line in metric_writer.read_metrics(tmp_path)] == [1]
  metric_writer.MetricLog(tmp_path).write(2, 0.0, {"loss": 2.0})
  assert [line["step"] for line in metric_writer.read_metrics(tmp_path)] == [1, 2]
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
  "line", ["[" * 100_000, f'{{"step": {"9" * 5000}}}', '{"step": "2"}', '{"step": null}', "7", "\0"]
)
def test_damaged_lines_are_dropped(tmp_path, line):
  metric_writer.MetricLog(tmp_path).write(1, 0.0, {"loss": 1.0})
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write(f"{line}\n")
  assert [read["step"] for read in metric_writer.read_metrics(tmp_path)] == [1]
  metric_writer.MetricLog(tmp_path).truncate(1)
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_truncate_forgets_later_steps_here_and_in_tensorboard(tmp_path):
  log = metric_writer.MetricLog(tmp_path)
  for step in (1, 2, 3):
    log.write(step, 0.0, {"loss": step})
  log.truncate(1)
  log.write(2, 0.0, {"loss": 20.0})
  log.close()
  lines = metric_writer.read_metrics(tmp_path)
  assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 20.0)]
  events = sorted(path.name for path in tmp_path.glob("events.*"))
  assert [name[-2:] for name in events] == [".0", ".2"]
  assert tensorboard_view(tmp_path) == {1: 1.0, 2: 20.0}


def test_what_a_run_fell_back_from_stays_marked(tmp_path):
  log = metric_writer.MetricLog(tmp_path)
  for step in (1, 2, 3):
    log.write(step, 0.0, {"loss": step})
  log.set_aside(1, fall=1)
  log.write(2, 0.0, {"loss": 20.0})
  log.write(3, 0.0, {"loss": 30.0})
  log.close()
  assert tensorboard_view(tmp_path) == {1: 1.0, 2: 20.0, 3: 30.0}
  log.truncate(2, falls=1)  # resumed from a checkpoint since the fall
  lines = metric_writer.read_metrics(tmp_path)
  assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 20.0)]
  aside = metric_writer.read_metrics(tmp_path, set_aside=True)
  assert [(line["step"], line["loss"], line["fall"]) for line in aside] == [
    (2, 2.0, 1),
    (3, 3.0, 1),
  ]
  log.truncate(1, falls=0)  # resumed from before it: the run will fall again
  assert [line["step"] for line in metric_writer.read_metrics(tmp_path)] == [1]
  assert metric_writer.read_metrics(tmp_path, set_aside=True) == []


def tensorboard_view(directory):
  """{step: value} as TensorBoard reads the events: a start event purges the later steps."""
  view = {}
  for path in sorted(directory.glob("events.*")):
    data = path.read_bytes()
    while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
      length = int.from_bytes(data[:8], "little")
      event = Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.session_log.status == SessionLog.START:
        view = {step: value for step, value in view.items() if step < event.step}
      for value in event.summary.value:
        view[event.step] = value.simple_value
  return view
