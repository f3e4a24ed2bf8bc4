"""Plans on the fake devices, and on a TPU slice where its compiler is installed."""

import contextlib
import importlib.util
from collections import Counter

import jax
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.plan import __main__ as plan
from imgtx_jax.plan import chips, compile_step, gpus, hlo_costs, report


@pytest.fixture
def run(parse_flags, monkeypatch):
  """run(config=…, flag=value, …) as the command line does."""
  monkeypatch.setattr(chips, "prepare", lambda topology, effort: None)  # jax has started
  monkeypatch.setattr(plan.common, "without_compilation_cache", contextlib.nullcontext)

  def call(**values):
    plan.main(parse_flags(plan.COMMAND, **dict(topology="cpu:2", classes=3) | values))

  return call


def hand_counted():
  """FLOPs of a pre-training step on cached codes; see also benchmark_test and flops_test."""
  tokens, width, hidden, layers, vocabulary = 16 * 16, 32, 64, 2, 32
  block = 2 * tokens * (4 * width**2 + 3 * width * hidden) + 4 * tokens * 16 * width
  return 3 * (layers * block + 2 * tokens * width * vocabulary)


@pytest.fixture
def cached_config(tiny_config):
  """The tiny config with a GPT that compiles in seconds, on codes."""
  tiny_config.pretrain.code_cache = "auto"
  tiny_config.gpt.dropout = tiny_config.class_dropout = 0.0
  return tiny_config


def test_plans_pretraining_for_local_devices(cached_config):
  cached_config.remat = "full"
  devices, chip = chips.open_topology("cpu:2")
  found = compile_step.plan(cached_config.lock(), "pretrain", 3, "cpu:2", devices, chip)
  assert found.model_flops == hand_counted() < found.run_flops
  state = compile_step.abstract_state(cached_config, "pretrain", 3)[1]
  parameters = 4 * sum(x.size for x in jax.tree.leaves(state.params))
  assert found.state_bytes["params"] == found.state_bytes["ema"] == parameters
  assert 0 <= found.state_bytes["opt_state"] - 2 * parameters < 100  # two moments and counters
  assert sum(found.state_bytes.values()) <= found.memory["arguments"]
  assert found.memory["peak"] >= sum(found.memory[k] for k in ("arguments", "temporaries"))
  # Every gradient is summed over the devices once, and of the metrics a few numbers.
  sent = sum(times * c.sent() for c, times in found.costs.collectives.items())
  assert parameters <= sent < 1.2 * parameters + 4096 and found.costs.unknown_loops == 0
  text = "\n".join(report.lines(found, cached_config))
  assert "pmap (a replica a chip" in text and "all-reduce over 2" in text
  assert found.seconds == {} and "utilisation" not in text


def test_a_split_state_takes_less(cached_config, monkeypatch):
  monkeypatch.setattr(compile_step, "_compile", lambda lowered, options: (None, 0.0))
  monkeypatch.setattr(compile_step.sharding, "MIN_SHARDED_SIZE", 64)
  cached_config.parallel.mode, cached_config.parallel.fsdp = "jit", 2
  config = cached_config.lock()
  devices, _ = chips.open_topology("cpu:2")
  found = compile_step.plan(config, "pretrain", 3, "cpu:2", devices, None)
  state = compile_step.abstract_state(config, "pretrain", 3)[1]
  whole = 4 * sum(x.size for x in jax.tree.leaves(state.params))
  assert 0.5 * whole <= found.state_bytes["params"] < 0.6 * whole
  assert found.held[2] < 0.6 * found.held[1]


def test_states_of_all_stages_are_shapes_only(tiny_config, small_vgg):
  for name in ("tokenizer", "pretrain", "finetune", "gan", "style"):
    stage, state, _ = compile_step.abstract_state(tiny_config, name, 3)
    assert stage.name == name
    kinds = {type(x) for x in jax.tree.leaves(state)}
    assert kinds == {jax.ShapeDtypeStruct}


def made(**values):
  """A Plan of a network of 10 GiB on 8 chips, that no compiler has seen."""
  gib = 2**30
  values = (
    dict(
      stage="pretrain",
      topology="v5e:2x4",
      devices=8,
      chip=chips.CHIPS["v5e"],
      pmap=True,
      fsdp=1,
      batch=16,
      steps=86400,
      dtype="bfloat16",
      compile_seconds=1.0,
      state_bytes=dict.fromkeys(compile_step.PARTS, 2 * gib),
      held={1: 14 * gib, 2: 7 * gib, 4: 3.5 * gib, 8: 1.75 * gib},
      memory=None,
      needed_bytes=17 * gib,
      limit_bytes=15.75 * gib,
      model_flops=8 * 197e12,
      run_flops=2 * 8 * 197e12,
      costs=None,
      link_seconds={},
    )
    | values
  )
  return compile_step.Plan(**values)


def test_says_what_to_change(tiny_config):
  text = "\n".join(report.lines(made(), tiny_config))
  assert "needs 17.00 of 15.75 GiB: DOES NOT FIT" in text
  assert "parallel.mode=jit --config.parallel.fsdp=2 leaves 7.00" in text
  for way in ("remat=full", "pretrain.grad_accum_steps=2", "pretrain.batch_size=8"):
    assert f"--config.{way}" in text
  split = made(pmap=False, fsdp=2, batch=8)
  text = "\n".join(report.advice(split, tiny_config))
  assert "fsdp" not in text and "grad_accum_steps" not in text and "batch_size" not in text


def test_says_when_no_split_is_enough(tiny_config):
  gib = 2**30
  large = made(held={1: 99 * gib, 2: 50 * gib, 4: 25 * gib, 8: 13 * gib})
  first = next(iter(report.advice(large, tiny_config)))
  assert first.startswith("state and gradients are 13.00 GiB a chip even with fsdp 8: more chips")


def test_times_and_utilisation(tiny_config):
  """Arithmetic takes 2 s, memory 1 s, communication 4 s."""
  collective = hlo_costs.Collective("all-reduce", (0, 1), 1e9)
  moved = hlo_costs.Costs(819e9, Counter({collective: 3}), 0)
  fits = {"arguments": 8 * 2**30, "temporaries": 2**30, "program": 0, "peak": 9 * 2**30}
  found = made(memory=fits, costs=moved, link_seconds={collective: 4.0})
  assert found.step_seconds == (4.0, 7.0)
  assert found.utilisation == pytest.approx((1 / 7, 1 / 4))
  text = "\n".join(report.lines(found, tiny_config))
  assert "at most 9.00 of 15.75 GiB: fits" in text and "100% more recomputed" in text
  assert "all-reduce over 2: 3 a step, 3e+03 MB sent by a chip, 4e+03 ms" in text
  assert "utilisation     0.14–0.25" in text and "86,400 steps take 4–7 days" in text
  assert "communication takes 2.0 times as long as arithmetic at 2 images a chip" in text
  assert "another fsdp" not in text
  split = found._replace(pmap=False, fsdp=8)
  assert "another fsdp" in "\n".join(report.advice(split, tiny_config))
  row = report.sweep_row(found)
  assert row == "| pretrain | 16 | 1 | 9.00 | 15.75 | 0.14–0.25 | 2–4 | 4–7 |"


def test_what_a_gpu_compiles_may_not_fit(tiny_config):
  gpu, gib = gpus.GPUS["h100"], 2**30
  held = {1: 2 * gib}
  memory = {"arguments": 2 * gib, "temporaries": 66 * gib, "program": 0, "peak": 68 * gib}
  found = made(chip=gpu, memory=memory, limit_bytes=gpu.usable_bytes, held=held)
  text = "\n".join(report.lines(found, tiny_config))
  assert "needs 68.00 of 59.32 GiB: DOES NOT FIT" in text and "utilisation" not in text
  assert "XLA_CLIENT_MEM_FRACTION=0.92" in text and "batch_size=8" in text
  assert "does not fit" in report.sweep_row(found)
  larger = found._replace(memory=memory | {"peak": 78 * gib})
  assert "XLA_CLIENT" not in "\n".join(report.lines(larger, tiny_config))
  assert ": fits" in "\n".join(report.lines(found._replace(limit_bytes=69 * gib), tiny_config))


def test_without_ptxas():
  class Lowered:
    def compile(self, options):
      raise jax.errors.JaxRuntimeError("UNAVAILABLE: No PTX compilation provider is available.")

  with pytest.raises(UserError, match="need ptxas, which is not here"):
    compile_step._compile(Lowered())


def test_a_fitting_state_needs_fewer_parts(tiny_config):
  fits = {"arguments": 0, "temporaries": 0, "program": 0, "peak": 0}
  held = {1: 2**30, 2: 2**29}
  (line,) = report.advice(made(pmap=False, fsdp=2, held=held, memory=fits), tiny_config)
  assert "--config.parallel.fsdp=1" in line


def test_a_sweep(tiny_config, run, monkeypatch, capsys):
  tiny_config.stages = ("pretrain",)
  seen = []

  def make(config, name, *rest):
    seen.append((config[name].batch_size, config[name].steps, config.parallel.fsdp))
    if config.parallel.fsdp == 4:
      raise UserError("fsdp 4 does not divide the 2 devices: use a divisor")
    return made(batch=config[name].batch_size, fsdp=config.parallel.fsdp)

  monkeypatch.setattr(compile_step, "plan", make)
  run(config=tiny_config.lock(), sweep=True, fsdp_sizes="2,4")
  assert [s[0] for s in seen] == [16, 16, 32, 32, 64, 64] and seen[2][1:] == (3, 2)
  rows = capsys.readouterr().out.splitlines()
  assert len(rows) == 8 and "17.00 | 15.75 | does not fit" in rows[2]
  assert "does not divide the 2 devices" in rows[3]
  with pytest.raises(UserError, match="--batch_sizes has 'many'"):
    run(config=tiny_config, sweep=True, batch_sizes="many")


def test_stages_that_cannot_run(tiny_config, run, monkeypatch, capsys):
  tiny_config.tokenizer.batch_size = 15
  tiny_config.stages = ("tokenizer", "pretrain")
  planned = []
  monkeypatch.setattr(report, "lines", lambda found, config: planned.append(found) or ["fine"])
  monkeypatch.setattr(compile_step, "_compile", lambda lowered, options: (None, 1.0))
  run(config=tiny_config.lock())
  out = capsys.readouterr().out
  assert "tokenizer on cpu:2: cannot run: config.tokenizer.batch_size=15 is not divisible" in out
  assert [p.stage for p in planned] == ["pretrain"] and planned[0].devices == 2
  with pytest.raises(UserError, match="not divisible by the 2 devices"):
    run(config=tiny_config, stage="tokenizer")
  with pytest.raises(UserError, match="--stage=style is not in config.stages"):
    run(config=tiny_config, stage="style")


def test_classes_without_the_data(tiny_config, capsys):
  assert plan.number_of_classes(tiny_config, 0) > 1  # the emoji are here
  tiny_config.data.source, tiny_config.data.path = "folder", "/nowhere"
  assert plan.number_of_classes(tiny_config, 0) == 1000
  assert "folder is not here: planned for 1000 classes" in capsys.readouterr().out


@pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (the extra 'plan')"
)
def test_plans_for_a_slice(cached_config, monkeypatch):
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  monkeypatch.setattr(compile_step.sharding, "MIN_SHARDED_SIZE", 64)
  cached_config.parallel.mode, cached_config.parallel.fsdp = "jit", 2
  devices, chip = chips.open_topology("v5e:2x2")
  found = compile_step.plan(cached_config.lock(), "pretrain", 3, "v5e:2x2", devices, chip)
  assert found.model_flops == hand_counted() and found.dtype == "bfloat16"
  assert found.costs.unknown_loops == 0
  assert {len(c.group) for c in found.costs.collectives} >= {2}
  assert 0 < found.utilisation[0] <= found.utilisation[1] < 1
  text = "\n".join(report.lines(found, cached_config))
  assert "of 15.75 GiB: fits" in text and "of v5e's peak" in text
