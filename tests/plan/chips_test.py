import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imgtx_jax.errors import UserError
from imgtx_jax.plan import chips


def test_links_of_a_torus():
  v5e = chips.CHIPS["v5e"]
  line = [(x, 0, 0) for x in range(4)]
  ring = [(x, 0, 0) for x in range(16)]
  every = [(x, y, 0) for x in range(16) for y in range(16)]
  sides = (16, 16, 1)
  assert v5e.link_rate("all-gather", ring, sides) == 100e9  # two of four links, both ways round
  assert v5e.link_rate("all-reduce", every, sides) == 200e9
  assert v5e.link_rate("all-gather", line, sides) == 50e9  # 4 of 16 in a row have two ends
  assert v5e.link_rate("all-gather", ring[::4], sides) == 50e9 * 4 / 13  # others lie between
  assert v5e.link_rate("collective-permute", line[:2], sides) == 50e9
  v5p = chips.CHIPS["v5p"]
  assert v5p.link_rate("all-gather", line, (4, 4, 4)) == 200e9  # sides of 4 close to rings here
  assert v5p.link_rate("all-gather", line[:2], (2, 4, 4)) == 100e9


def test_local_devices():
  devices, chip = chips.open_topology("cpu:2")
  assert devices == jax.devices()[:2] and chip is None
  assert len(chips.open_topology("cpu")[0]) == len(jax.devices())


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v5e:16", "v5e:16 does not say how many chips of a v5e lie along each of the 2 axes"),
    ("v5p:4x4", "write for example v5p:4x4x4"),
    (
      "v9:4x4",
      "'v9' is not one of: v4, v5e, v5p, v6e, a100-40g, a100, h100, h200, cpu, gpu",
    ),
    ("cpu:99", "asks for 99 devices, and there are 4 here"),
    ("cpu:two", "has no number of devices"),
    ("cpu:1000000", "has no number of devices from 1 to 9999"),
    ("gpu", "jax finds no gpu here"),
  ],
)
def test_bad_topologies(topology, message):
  with pytest.raises(UserError, match=message):
    chips.open_topology(topology)


def test_without_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"libtpu, which is not installed.*imgtx_jax\[plan\]"):
    chips.open_topology("v5e:4x4")


@pytest.fixture
def no_probing(monkeypatch):
  if not importlib.util.find_spec("libtpu"):
    pytest.skip("libtpu is not installed (the extra 'plan')")
  for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
    monkeypatch.setenv(name, value)


def test_slices(no_probing):
  for topology, count in (("v4:4x4x4", 64), ("v5e:16x16", 256), ("v5p:2x4x4", 32), ("v6e:8x8", 64)):
    devices, chip = chips.open_topology(topology)
    assert len(devices) == count and chip.name == topology.split(":")[0]
    assert len({tuple(d.coords) for d in devices}) == count  # one device a chip
  with pytest.raises(UserError, match="v5e:3x3.*slices that exist are for example v5e:16x16"):
    chips.open_topology("v5e:3x3")


def test_the_limits_are_those_that_the_compiler_names(no_probing):
  for topology in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    devices, chip = chips.open_topology(topology)
    mesh = Mesh(np.array(devices[:1]), ("x",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    huge = jax.ShapeDtypeStruct((200, 2**28), np.float32, sharding=whole)
    traced = jax.jit(lambda x: x + 1).trace(huge)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{chip.usable_bytes / 2**30:.2f}G"):
      traced.lower(lowering_platforms=("tpu",)).compile()
