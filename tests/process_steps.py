"""Some steps of every stage, by as many processes as it is started with, into files OUT-MODE.npz:

bash launch/local_processes.sh 2 python tests/process_steps.py OUT MODE:FSDP:STAGE,STAGE …
"""

import argparse
import importlib.util
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from imgtx_jax import parallel, processes
from imgtx_jax.stages import build

STEPS, BATCH, CLASSES = 5, 16, 3


def make_config():
  path = pathlib.Path(__file__).with_name("tiny_config.py")
  spec = importlib.util.spec_from_file_location("tiny_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config().unlock()
  for network in ("encoder", "generator", "gpt", "discriminator"):
    config[network].layers = 1
  config.data.flip = True
  config.quantizer.entropy = 0.01
  config.tokenizer.adversarial_weight = 0.1
  return config


def make_batch(number):
  """This process's rows of a global batch of waves."""
  draw = np.random.default_rng(number)
  y, x = np.mgrid[:16, :16] / 16
  rate = draw.uniform(0.5, 2, (BATCH, 3, 2))[..., None, None]
  wave = np.sin(6 * (rate[:, :, 0] * x + rate[:, :, 1] * y)).transpose(0, 2, 3, 1)
  batch = {
    "image": ((wave + 1) * 127.5).astype(np.uint8),
    "label": np.arange(BATCH, dtype=np.int32) % CLASSES,
    "mask": (np.arange(BATCH) < BATCH - 5).astype(np.float32),  # an uneven tail
  }
  rows = BATCH // jax.process_count()
  first = rows * jax.process_index()
  return {name: x[first : first + rows] for name, x in batch.items()}


def train(names, mode, fsdp, devices=None):
  """{"STAGE/…": array} of metrics of every step, held-out sums and the final parameters."""
  parallel.MIN_SHARDED_SIZE = 64  # splits even these arrays
  config, key, restored, found = make_config(), jax.random.key(0), {}, {}
  run = parallel.make_parallel(mode, fsdp=fsdp, devices=devices)
  for name in names:
    print(name, time.process_time())
    stage = build(name, config, CLASSES)
    init = jax.jit(lambda key, restored, stage=stage: stage.init(key, (BATCH, 16, 16, 3), restored))
    before = {earlier: restored[earlier] for earlier in stage.sources}
    state = jax.tree.map(np.asarray, init(key, before))
    restored[name] = {"params": state.params, "ema": state.ema, "variables": state.variables}
    step, state = run.compile_step(stage.step), run.put_state(state)
    for number in range(STEPS):
      batch = make_batch(number)
      del batch["mask"]
      state, metrics = step(state, run.put_batch(batch), key)
      found |= {f"{name}/{number}/{n}": np.asarray(x) for n, x in metrics.items()}
    if name == "tokenizer":
      sums = run.compile_sums(stage.evaluators()["validation"].sums)
      sums = sums(state, run.put_batch(make_batch(99)), key)
      found |= {f"{name}/held out/{n}": np.asarray(x) for n, x in sums.items()}
    params = run.get_state(state.replace(frozen={})).params
    if mode == "jit":
      params = multihost_utils.process_allgather(params, tiled=True)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    found |= {f"{name}/{jax.tree_util.keystr(path)}": np.asarray(x) for path, x in leaves}
  return found


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("out")
  parser.add_argument("runs", nargs="+", help="MODE:FSDP:STAGE,STAGE")
  parser.add_argument("--coordinator_address")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int)
  given = parser.parse_args()
  processes.start(given.coordinator_address, given.num_processes, given.process_id)
  for text in given.runs:
    mode, fsdp, names = text.split(":")
    found = train(names.split(","), mode, int(fsdp))
    if processes.is_first():
      np.savez(f"{given.out}-{mode}.npz", **found)
    processes.wait_for_all("written")
