"""Groups of devices as every notation of the compilers names them, and lines as they write them."""

import pytest

from imgtx_jax.plan import hlo


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
  assert hlo.group_of(text, 8) == group


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
  computations, entry = hlo.parse(text)
  assert entry == "main.5" and set(computations) == {"fused", "main.5"}
  main = computations["main.5"]
  assert main["c"].rest == "36" and main["x"].operands == ("0",)
  assert main["f"].shapes == (hlo.Shape(12, False), hlo.Shape(16, True))
  assert main["f"].called("calls") == ["fused"] and main["f"].called("body") == []
  assert main["t"].operands == ("x", "f") and main["t"].is_root and not main["f"].is_root
