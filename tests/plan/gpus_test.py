import contextlib
import importlib.util

import jax
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.plan import chips, compile_step, gpus, report

H100 = gpus.GPUS["h100"]


def hosts(count, each):
  return [(0, host, gpu) for host in range(count) for gpu in range(each)]


def test_links_within_a_host_and_between_hosts():
  assert H100.link_rate("all-reduce", hosts(1, 8), (1, 1, 8)) == 450e9
  # A ring through two hosts of eight passes through eight adapters: 400 GB/s, less than NVLink.
  assert H100.link_rate("all-reduce", hosts(2, 8), (1, 2, 8)) == 8 * 50e9
  assert H100.link_rate("all-gather", hosts(2, 1), (1, 2, 8)) == 50e9
  assert H100.link_rate("all-reduce", hosts(2, 16), (1, 2, 16)) == 450e9
  assert H100.link_rate("collective-permute", hosts(2, 1), (1, 2, 8)) == 50e9
  assert H100.link_rate("all-to-all", hosts(2, 8), (1, 2, 8)) == 50e9


def test_the_memory_that_jax_takes(monkeypatch):
  for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(name, raising=False)
  assert H100.usable_bytes == 0.75 * H100.memory_bytes
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
  assert H100.usable_bytes == 0.5 * H100.memory_bytes
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
  with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION=most is no part"):
    gpus.memory_fraction()


@pytest.mark.parametrize("shape", ["", "0", "2x", "2x2x8", "eight"])
def test_bad_topologies(shape):
  with pytest.raises(UserError, match="does not say how many GPUs.*h100:8, or h100:2x8"):
    chips.open_topology(f"h100:{shape}")


def test_without_the_plugin(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"plugin, which is not installed.*imgtx_jax\[plan-gpu\]"):
    chips.open_topology("h100:8")


@pytest.mark.skipif(not gpus.has_plugin(), reason="needs the extra plan-gpu")
def test_plans_for_gpus_that_are_not_here(tiny_config, monkeypatch):
  tiny_config.pretrain.code_cache = "auto"
  monkeypatch.setattr(compile_step.sharding, "MIN_SHARDED_SIZE", 64)
  tiny_config.parallel.mode, tiny_config.parallel.fsdp = "jit", 2
  devices, gpu = chips.open_topology("h100:2x4")
  assert [tuple(d.coords) for d in devices] == hosts(2, 4) and gpu is H100
  with contextlib.suppress(UserError):
    assert len(chips.open_topology("a100-40g:1")[0]) == 1
  found = compile_step.plan(tiny_config.lock(), "pretrain", 3, "h100:2x4", devices, gpu)
  assert found.dtype == "bfloat16" and found.costs.unknown_loops == 0
  # The parts of the state are gathered over two neighbours, gradients summed over all eight.
  assert {len(c.group) for c in found.costs.collectives} >= {2, 8}
  assert 0 < found.utilisation[0] <= found.utilisation[1] < 1
  assert sum(found.state_bytes.values()) <= found.memory["arguments"]
  text = "\n".join(report.lines(found, tiny_config))
  assert "of 59.32 GiB: fits" in text and "of h100's peak" in text
  assert jax.default_backend() == "cpu"
