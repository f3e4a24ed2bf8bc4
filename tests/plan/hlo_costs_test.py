"""Bytes and collectives of programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from imgtx_jax.plan import hlo_costs

LOOP = """HloModule m

%cond (p: (s32[], f32[100])) -> pred[] {
  %p = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[100])) -> (s32[], f32[100]) {
  %p = (s32[], f32[100]{0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%p), index=0
  %x = f32[100]{0} get-tuple-element(%p), index=1
  %y = f32[100]{0} negate(%x)
  ROOT %t = (s32[], f32[100]{0}) tuple(%i, %y)
}

ENTRY %main (x: (s32[], f32[100])) -> (s32[], f32[100]) {
  %x = (s32[], f32[100]{0}) parameter(0)
  ROOT %w = (s32[], f32[100]{0}) while(%x), condition=%cond, body=%bodyKNOWN
}
"""


def test_loops_count_as_often_as_they_run():
  once = 2 * 400  # a read and a write of 100 floats
  found = hlo_costs.measure(LOOP.replace("KNOWN", ""), 1)
  assert found.memory_bytes == 5 * once and found.unknown_loops == 0
  known = ', backend_config={"known_trip_count":{"n":"7"}}'
  assert hlo_costs.measure(LOOP.replace("KNOWN", known), 1).memory_bytes == 7 * once
  endless = LOOP.replace("KNOWN", "").replace("constant(5)", "get-tuple-element(%p), index=0")
  found = hlo_costs.measure(endless, 1)
  assert found.memory_bytes == once and found.unknown_loops == 1


def entry(lines, before=""):
  return f"HloModule m\n\n{before}\nENTRY %main (x: f32[36,100]) -> f32[100] {{\n{lines}\n}}\n"


SLICING = """%fused (p: f32[36,100], i: s32[], u: f32[1,100]) -> f32[36,100] {
  %p = f32[36,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = f32[1,100]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,100}
  %b = f32[1,100]{1,0} bitcast(%s)
  %n = f32[1,100]{1,0} negate(%b)
  ROOT %d = f32[36,100]{1,0} dynamic-update-slice(%p, %n, %i, %z)
}
"""


def test_of_a_slice_and_an_update_in_place_only_the_slice_moves():
  text = entry(
    "  %x = f32[36,100]{1,0} parameter(0)\n  %i = s32[]{:S(6)} parameter(1)\n"
    "  ROOT %f = f32[36,100]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused",
    SLICING,
  )
  assert hlo_costs.measure(text, 1).memory_bytes == 2 * 400


def test_buffers_on_the_chip_move_nothing():
  text = entry(
    "  %x = f32[36,100]{1,0} parameter(0)\n"
    "  %s = (f32[36,100]{1,0:S(1)}, f32[36,100]{1,0}, u32[]{:S(2)}) copy-start(%x)\n"
    "  %c = f32[36,100]{1,0:S(1)} copy-done(%s)\n"
    "  %n = f32[36,100]{1,0:S(1)} negate(%c)\n"
    "  ROOT %m = f32[36,100]{1,0} negate(%n)"
  )
  assert hlo_costs.measure(text, 1).memory_bytes == 2 * 36 * 400  # in by the copy, out at the end


def test_of_a_conditional_the_costliest_branch_counts():
  branch = "%{0} (p: f32[{1}]) -> f32[{1}] {{\n  %p = f32[{1}]{{0}} parameter(0)\n  ROOT %n = "
  branch += "f32[{1}]{{0}} negate(%p)\n}}\n"
  before = branch.format("a", 10) + "\n" + branch.format("b", 30)
  text = entry(
    "  %x = f32[30]{0} parameter(0)\n  %i = s32[] parameter(1)\n"
    "  ROOT %c = f32[30]{0} conditional(%i, %x, %x), branch_computations={%a, %b}",
    before,
  )
  assert hlo_costs.measure(text, 1).memory_bytes == 2 * 30 * 4


@pytest.mark.parametrize(
  ("line", "sent"),
  [
    ("f32[100]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8]", 2 * 300),
    ("f32[400]{0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8]", 1200),
    ("f32[25]{0} reduce-scatter(%x), channel_id=1, replica_groups=[2,4]<=[8]", 300),
    ("f32[100]{0} all-to-all(%x), channel_id=1, replica_groups=[2,4]<=[8]", 300),
    ("f32[100]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", 400),
    ("f32[100]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}", 0),
  ],
)
def test_what_a_collective_sends(line, sent):
  text = entry(f"  %x = f32[100]{{0}} parameter(0)\n  ROOT %c = {line}")
  found = hlo_costs.measure(text, 8)
  assert sum(times * c.sent() for c, times in found.collectives.items()) == sent


def test_pieces_of_an_asynchronous_collective_count_once():
  piece = """%{0} (p: f32[100]) -> f32[400] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %g = f32[400]{{0}} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[8]
}}
"""
  text = entry(
    "  %x = f32[100]{0} parameter(0)\n"
    "  %a = f32[400]{0} fusion(%x), kind=kCustom, calls=%start\n"
    "  ROOT %b = f32[400]{0} fusion(%x), kind=kCustom, calls=%done",
    piece.format("start") + "\n" + piece.format("done"),
  )
  assert sum(hlo_costs.measure(text, 8).collectives.values()) == 1
  scattered = text.replace("%start", "%all-reduce-scatter.1").replace("all-gather", "all-reduce")
  (found,) = hlo_costs.measure(scattered, 8).collectives
  assert found.kind == "reduce-scatter" and found.sent() == 300


def test_a_compiled_scan_with_a_sum_over_devices():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  split, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("data",), ()))

  def loss(ws, x):
    y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, ws)
    return jnp.mean(y**2)

  shapes = (
    jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=whole),
    jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split),
  )
  run = jax.jit(jax.grad(loss), out_shardings=whole)
  found = hlo_costs.measure(run.lower(*shapes).compile().as_text(), 4)
  assert found.unknown_loops == 0
  # The gradient of every layer is summed once, in the loop or after it.
  sent = sum(times * c.sent() for c, times in found.collectives.items())
  assert {c.group for c in found.collectives} == {(0, 1, 2, 3)}
  assert sent == pytest.approx(2 * 3 / 4 * 5 * 32 * 32 * 4, rel=0.01)
  # Weights are read forward and backward and their gradients written, a layer at a time.
  weights = 4 * np.prod((5, 32, 32))
  assert 3 * weights < found.memory_bytes < 30 * weights


# -- The text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("text", "group"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", (0, 1, 2, 3)),
    ("replica_groups=[2,4]<=[8], dimensions={0}", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", (3, 1)),
    ("channel_id=1, source_target_pairs={{0,0},{2,6},{6,2}}", (2, 6)),
    ("replica_groups={}, to_apply=%add", tuple(range(8))),
  ],
)
def test_the_first_group(text, group):
  assert hlo_costs.group_of(text, 8) == group


def test_lines():
  text = """HloModule m

%fused (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %neg.1 = f32[4]{0} negate(%a)
}

ENTRY %main.5 (x: f32[4]) -> (f32[4], pred[]) {
  %x = f32[4]{0:T(128)} parameter(0), sharding={replicated}
  %c = s32[] constant(36)
  %f = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[4]{0}) fusion(%x), calls=%fused
  ROOT %t = (f32[4], pred[]) tuple(%x, %f), metadata={op_name="a (b)"}
}
"""
  computations, entry = hlo_costs.parse(text)
  assert entry == "main.5" and set(computations) == {"fused", "main.5"}
  main = computations["main.5"]
  assert main["c"].rest == "36" and main["x"].operands == ("0",)
  assert main["f"].shapes == (hlo_costs.Shape(12, False), hlo_costs.Shape(16, True))
  assert main["f"].called("calls") == ["fused"] and main["f"].called("body") == []
  assert main["t"].operands == ("x", "f") and main["t"].is_root and not main["f"].is_root
