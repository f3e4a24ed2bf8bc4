"""A batch in parts gives what the whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.distributed import sharding
from imgtx_jax.stages import build
from imgtx_jax.training.gradient_accumulation import mean_over_parts


def test_every_row_counts_once():
  batch = {"x": jnp.arange(12.0), "y": jnp.ones((12, 2))}
  for parts in (1, 2, 6, 12):
    mean = mean_over_parts(lambda part: jax.tree.map(jnp.mean, part), batch, parts)
    assert float(mean["x"]) == pytest.approx(5.5) and float(mean["y"]) == 1
  rows = mean_over_parts(lambda part: part["x"], batch, 3)  # [4]: means over the three parts
  np.testing.assert_allclose(rows, np.arange(12.0).reshape(4, 3).mean(1))


def test_pretraining_in_parts_is_pretraining(tiny_config, smooth_images):
  """On one device; tests/stages/devices_test.py has parts on several."""
  tiny_config.pretrain.optimizer.epsilon = 1e-3
  tiny_config.gpt.depth = tiny_config.encoder.depth = 1
  key, ends = jax.random.key(0), []
  tokenizer = build("tokenizer", tiny_config, 3).init(key, (16, 16, 16, 3), {})
  batch = {"image": smooth_images(16, 16), "label": np.arange(16, dtype=np.int32) % 3}
  run = sharding.make_parallel("jit", devices=jax.devices()[:1])
  for parts in (1, 4):
    tiny_config.pretrain.grad_accum_steps = parts
    stage = build("pretrain", tiny_config, 3)
    state = run.put_state(stage.init(key, (16, 16, 16, 3), {"tokenizer": {"ema": tokenizer.ema}}))
    step = run.compile_step(stage.step)
    for _ in range(2):
      state, metrics = step(state, run.put_batch(batch), key)
    ends.append(jax.device_get((run.get_state(state).params, metrics)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *ends)
