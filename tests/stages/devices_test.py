"""Every stage gives the same numbers on one device, under pmap, and under jit on a mesh that splits
batch and parameters; and no step moves an array between host and devices unasked."""

import jax
import numpy as np
import pytest

from imgtx_jax.distributed import sharding
from imgtx_jax.stages import STAGES

MODES = {
  "one": dict(mode="jit", count=1),
  "pmap": dict(mode="pmap", count=4),
  "fsdp": dict(mode="jit", count=4, fsdp=2),
}


def run(stage, state, batches, mode, count, fsdp=1):
  devices = sharding.make_parallel(mode, fsdp=fsdp, devices=jax.devices()[:count])
  step = devices.compile_step(stage.step)
  refresh = devices.compile_refresh(stage.refresh) if stage.refresh else None
  placed, key = devices.put_state(state), devices.put_key(jax.random.key(5))
  with jax.transfer_guard("disallow"):  # nothing moves unasked, in no stage and no mode
    if refresh:
      placed = refresh(placed, key)
    for batch in batches:
      placed, metrics = step(placed, devices.put_batch(batch), key)
  after = jax.device_get(devices.get_state(placed))
  if fsdp > 1:  # what is summed over a mesh, "one" sums too
    return after, jax.device_get(metrics)
  sums = devices.compile_sums(stage.evaluators()["validation"].sums)
  masked = batches[0] | {"mask": np.ones(len(batches[0]["label"]), np.float32)}
  totals = sums(placed, devices.put_batch(masked), jax.random.key(5))
  return after, jax.device_get(metrics), jax.device_get(totals)


@pytest.fixture
def small_shards(monkeypatch):
  """FSDP splits even the tiny arrays of these tests."""
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)


@pytest.mark.parametrize("name", STAGES)
def test_all_modes_agree(first_states, name, tiny_config, smooth_images, small_shards, random_vgg):
  tiny_config.data.flip = True
  tiny_config.generator.taps = ()
  for network in ("encoder", "generator", "gpt", "discriminator", "style_encoder"):
    tiny_config[network].depth = 1
  tiny_config.gpt.drop_path = 0.1
  tiny_config.pretrain.grad_accum_steps = 2
  tiny_config.quantizer.entropy = 0.01
  tiny_config.tokenizer.adversarial_weight = tiny_config.style.adversarial_weight = 0.1
  tiny_config.tokenizer.continuous_prob = 0.5
  tiny_config.style.partial_prob = 0.5
  if name == "gan":
    tiny_config.discriminator.update(dict(attention="l2", spectral_norm=True))
  tiny_config.tokenizer.adversarial_adaptive = True
  if name == "finetune":
    tiny_config.adversary.update(dict(penalty_every=2, consistency_weight=0.1))
  # Adam divides by the gradient's size: a large epsilon keeps it from blowing up the last digits.
  tiny_config.optimizer.epsilon = 1e-3
  stage, state, _ = first_states(name, tiny_config, 3, (16, 16, 16, 3))
  batches = [
    {"image": smooth_images(16, 16, seed), "label": np.arange(16, dtype=np.int32) % 3}
    for seed in range(2)
  ]
  for seed, batch in enumerate(batches):
    batch |= {other: smooth_images(16, 16, seed + 2) for other in stage.companion_names}
  expected = run(stage, state, batches, **MODES["one"])
  for mode in ("pmap", "fsdp"):
    found = run(stage, state, batches, **MODES[mode])
    for part, ours, theirs in zip(("state", "metrics", "sums"), found, expected, strict=False):
      jax.tree.map_with_path(
        lambda path, a, b, where=f"{mode} {part}": assert_close(a, b, f"{where} {path}"),
        ours,
        theirs,
      )


def assert_close(found, expected, where):
  """Equal up to float32 rounding at the scale of the array."""
  scale = max(1.0, float(np.abs(expected).max(initial=0)))
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-4 * scale, err_msg=where)
