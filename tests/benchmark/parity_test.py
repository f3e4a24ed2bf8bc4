import pytest

from imgtx_jax.benchmark import parity


def test_runs_of_one_state_agree(tiny_config):
  tiny_config.stages = ("pretrain",)
  tiny_config.pretrain.code_cache = "auto"
  tiny_config.gpt.depth = 1
  found = parity.measure(tiny_config.lock(), steps=2, classes=3)
  stage = found["stages"]["pretrain"]
  assert stage["float32"]["loss"] < 1e-5  # here on the CPU too
  assert 0 < stage["bfloat16"]["loss"] < 0.03
  assert found["kernels"] == {"xla": {"logits": 0.0, "codes": 1.0}}


def test_differences():
  expected = [{"loss": 1.0, "codes": 4.0}, {"loss": 2.0, "codes": 4.0}]
  ours = [{"loss": 1.1, "codes": 4.0}, {"loss": 2.0, "codes": 3.0}]
  found = parity.difference(ours, expected)
  assert found["loss"] == pytest.approx(0.1)
  assert (found["worst"], found["difference"]) == ("codes", 0.25)
  broken = parity.difference([{"loss": float("nan"), "codes": 3.0}], expected[:1])
  assert broken["worst"] == "loss"


def test_what_cannot_run_says_why(tiny_config, monkeypatch):
  tiny_config.stages = ("tokenizer",)

  def fail(*_):
    raise RuntimeError("no memory\nand a long trace")

  monkeypatch.setattr(parity, "compare_steps", fail)
  monkeypatch.setattr(parity, "draw", fail)
  found = parity.measure(tiny_config.lock(), steps=1, classes=3)
  assert found["stages"]["tokenizer"] == {"error": "no memory"} == found["kernels"]["xla"]
