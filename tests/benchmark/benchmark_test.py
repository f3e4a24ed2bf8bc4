import contextlib
import json
import os
import pathlib
import types

import jax
import pytest

from imgtx_jax.benchmark import __main__ as benchmark
from imgtx_jax.benchmark import checkpoint, common, input_pipeline, model_flops, sampling, training
from imgtx_jax.cli import command
from imgtx_jax.config import defaults
from imgtx_jax.errors import UserError
from imgtx_jax.stages import build

CONFIG = f"--config={pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'}"
VALUES = ("images_per_second", "step_seconds", "peak_memory_bytes", "matmul_flops_per_second")


@pytest.fixture
def run(parse_flags, capsys, monkeypatch):
  """run(kind, config=None, flag=value, …) as the command line does; returns the printed object."""
  monkeypatch.setattr(common, "without_compilation_cache", contextlib.nullcontext)

  def call(kind, **values):
    flags = parse_flags(benchmark.COMMANDS, kind, **values)
    benchmark.COMMANDS[kind].main(flags)
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)

  return call


def test_measures_a_stage(tiny_config, run, monkeypatch):
  monkeypatch.setattr(training, "matmul_rate", lambda *_: 1e9)
  result = run("training", config=tiny_config.lock(), stage="pretrain", steps=3)
  assert all(result[name] > 0 for name in VALUES) and result["compile_seconds"] >= 0
  assert result["stage"] == "pretrain" and result["devices"] == jax.device_count()
  assert result["images_per_second"] == pytest.approx(16 / result["step_seconds"], rel=1e-2)
  expected = result["flops_per_step"] / (result["step_seconds"] * 1e9 * jax.device_count())
  assert result["model_flops_utilisation"] == pytest.approx(expected, rel=1e-2)


def test_measures_sampling(tiny_config, run, monkeypatch):
  monkeypatch.setattr(sampling, "READ_BYTES", 2**20)
  result = run("sampling", config=tiny_config.lock(), classes=5, steps=1, batch=2)
  layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
  # All but the tables of labels and codes, of which a step reads rows.
  weights = 2 * layer + 32 + 32 * 32 + 16 * 32
  assert result["weight_bytes"] == 4 * weights
  assert result["codes"] == 16 and result["batch_size"] == 2
  assert result["images_per_second"] == pytest.approx(2 / result["seconds"], rel=1e-2)
  expected = 16 * result["weight_bytes"] / result["bytes_per_second"]
  assert result["floor_seconds"] == pytest.approx(expected, rel=1e-2)
  with pytest.raises(UserError, match="--batch=0"):
    run("sampling", config=tiny_config, batch=0)


def test_measures_the_dial(tiny_config, run, monkeypatch):
  monkeypatch.setattr(sampling, "READ_BYTES", 2**20)
  dial = run("sampling", config=tiny_config.lock(), classes=3, steps=1, batch=2, dial=True)["dial"]
  assert [row["prefix"] for row in dial] == [0, 1, 4, 16]
  rates = [row["images_per_second"] for row in dial]
  assert [row["speedup"] for row in dial] == pytest.approx([r / rates[-1] for r in rates], rel=1e-2)
  assert min(rates) > 0


@pytest.mark.parametrize("own", [True, False], ids=["config", "generated"])
def test_measures_the_input(own, run, monkeypatch, tmp_path):
  for name, value in (("IMAGES", 8), ("BATCH", 4), ("ROUNDS", 1)):
    monkeypatch.setattr(input_pipeline, name, value)
  options = defaults.default()
  options.data.update(dict(source="images", path=str(tmp_path), image_size=16, threads=2))
  if own:
    input_pipeline.write_photographs(tmp_path, 9)
  result = run("input", config=options if own else None, steps=2)
  parts = ("source", "decode", "resize", "batch", "transfer", "megabytes_per_second")
  assert all(result[name] > 0 for name in parts)
  assert result["images"] == 8 and result["image_size"] == (16 if own else 256)
  assert 5e4 < result["mean_bytes"] < 15e4
  assert result["cores"] == sorted({1, len(os.sched_getaffinity(0))})
  for floor in ("decode_floor", "decode_crop_floor"):
    rows = zip(result[f"{floor}_fraction"], result["pipeline"], result[floor], strict=True)
    for fraction, ours, most in rows:
      assert fraction == pytest.approx(ours / most, rel=1e-2)
    assert min(result[f"{floor}_cpu_ms"]) > 0


def test_the_input_of_images_in_memory(tiny_config, run):
  with pytest.raises(UserError, match='"emoji" holds images in memory'):
    run("input", config=tiny_config)


def test_measures_checkpoints(run, monkeypatch):
  monkeypatch.setattr(checkpoint, "RUNS", 2)
  monkeypatch.setattr(checkpoint, "ARRAY_BYTES", 500_000)
  result = run("checkpoint", gigabytes=1e-3)
  assert result["arrays"] == 2 and result["gigabytes"] == pytest.approx(1e-3, rel=0.02)
  assert 0 < result["blocked_seconds"] < result["written_seconds"]
  rates = [value for name, value in result.items() if name.endswith("megabytes_per_second")]
  assert len(rates) == 3 and min(rates) > 0
  for gigabytes in (0.0, float("nan"), 1e6):
    with pytest.raises(UserError, match=f"--gigabytes={gigabytes} must be more than 0, and twice"):
      run("checkpoint", gigabytes=gigabytes)


def test_measures_matrix_products():
  assert 1e6 < training.matmul_rate("float32", side=256, chain=4) < 1e14


def test_measures_pretraining_on_cached_codes(tiny_config, run, monkeypatch):
  """No encoder in the step: its share of the FLOPs is gone."""
  monkeypatch.setattr(training, "matmul_rate", lambda *_: 1e9)
  counted = {}
  for cache in ("", "auto"):
    tiny_config.pretrain.code_cache = cache
    result = run("training", config=tiny_config, stage="pretrain", steps=2)
    counted[cache] = result["flops_per_step"]
  tokens, width, hidden, layers, vocabulary = 16 * 16, 32, 64, 2, 32
  block = 2 * tokens * (4 * width**2 + 3 * width * hidden) + 4 * tokens * 16 * width
  assert counted["auto"] == 3 * (layers * block + 2 * tokens * width * vocabulary)
  assert counted["auto"] < counted[""]


def abstract_state(tiny_config, name):
  stage = build(name, tiny_config, 9)
  shape = common.batch_shape(tiny_config, stage)

  def init():
    # The frozen networks of a stage are those that the ones before it leave.
    results = {}
    for earlier in stage.sources:
      state = build(earlier, tiny_config, 9).init(jax.random.key(0), shape, results)
      results[earlier] = {"params": state.params, "ema": state.ema, "variables": state.variables}
    return stage.init(jax.random.key(0), shape, results)

  return jax.eval_shape(init)


def test_flops_of_pretraining(tiny_config):
  """The encoder and the search for codes once, the GPT once forward and twice backward."""
  batch, codes, width, hidden, layers, vocabulary = 16, 16, 32, 64, 2, 32
  tokens = batch * codes
  block = 2 * tokens * (4 * width**2 + 3 * width * hidden) + 4 * tokens * codes * width
  code_dim, patch = tiny_config.quantizer.code_dim, 3 * tiny_config.patch**2
  encoder = layers * block + 2 * tokens * width * (patch + code_dim)
  search = 2 * tokens * code_dim * vocabulary
  gpt = layers * block + 2 * tokens * width * vocabulary
  state = abstract_state(tiny_config, "pretrain")
  counted = model_flops.count_step(tiny_config, "pretrain", 9, state)
  assert counted == encoder + search + 3 * gpt


def test_model_flops_do_not_hang_on_how_the_step_runs(tiny_config):
  state = abstract_state(tiny_config, "pretrain")
  plain = model_flops.count_step(tiny_config, "pretrain", 9, state)
  tiny_config.update(remat="full", attention_kernel="cudnn")
  assert model_flops.count_step(tiny_config.lock(), "pretrain", 9, state) == plain
  assert tiny_config.remat == "full"


def test_each_stage_runs_in_a_process_of_its_own(tiny_config, run, monkeypatch):
  calls, codes = [], [0, 2]

  def start(command):
    calls.append(command[1:])
    return types.SimpleNamespace(returncode=codes.pop(0))

  monkeypatch.setattr(benchmark.subprocess, "run", start)
  monkeypatch.setattr(benchmark.sys, "argv", ["benchmark.py", "training", "--config=c.py"])
  with pytest.raises(SystemExit) as stop:
    run("training", config=tiny_config)
  assert stop.value.code == 2
  start = ["-m", "imgtx_jax.benchmark", "training", "--config=c.py"]
  assert calls == [[*start, "--stage=tokenizer"], [*start, "--stage=pretrain"]]
  codes[:] = [-9]
  with pytest.raises(UserError, match="signal 9.*config.tokenizer.batch_size"):
    run("training", config=tiny_config)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "the first argument must be one of: training, sampling, input, parity, checkpoint"),
    (["trian"], "'trian' is not one of: training"),
    (["training", "sampling"], "unexpected argument 'sampling'"),
    (["training", "--steps=1", CONFIG], "--steps=1 is under 2"),
    (["training"], "--config is missing"),
    (["input", "--steps=0"], "--steps=0 is under 1"),
    (["training", "--stage=style", CONFIG], "--stage=style is not in config.stages.*tokenizer"),
  ],
)
def test_bad_input(arguments, message):
  with pytest.raises(UserError, match=message):
    command.parse(benchmark.COMMANDS, ["benchmark", *arguments]).run()
