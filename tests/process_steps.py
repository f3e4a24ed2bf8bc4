"""What two processes do together, in one start: steps of the stages that --runs names, a checkpoint
after the third of them, a SIGTERM to one of them, and at last the death of one.

  bash launch/local_processes.sh 2 python tests/process_steps.py --out=DIR --runs=jit:1:gan

--last=stop ends before the death. tests/processes_test.py compares what is left in DIR with one
process.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from imgtx_jax.cli import command
from imgtx_jax.cli.stop_signals import StopSignals
from imgtx_jax.data import pipeline, sources
from imgtx_jax.distributed import processes, sharding
from imgtx_jax.stages import STAGES, build
from imgtx_jax.training import checkpoint

STEPS, SAVED, BATCH, CLASSES = 5, 3, 16, 3


def make_config():
  path = pathlib.Path(__file__).with_name("tiny_config.py")
  spec = importlib.util.spec_from_file_location("tiny_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config().unlock()
  for network in ("encoder", "generator", "gpt", "discriminator"):
    config[network].depth = 1
  config.data.flip = True
  config.quantizer.entropy = 0.01
  config.finetune.noise_candidates = 2
  config.adversary.penalty_sigma = 0.3  # the larger, the less of float32's digits it loses
  return config


def start_data(companions):
  """This process's iterator over batches of waves, with others beside them by these names."""
  draw = np.random.default_rng(0)
  y, x = np.mgrid[:16, :16] / 16
  rate = draw.uniform(0.5, 2, (50, 3, 2))[..., None, None]
  wave = np.sin(6 * (rate[:, :, 0] * x + rate[:, :, 1] * y)).transpose(0, 2, 3, 1)
  images = ((wave + 1) * 127.5).astype(np.uint8)
  names = [str(i) for i in range(50)]
  source = sources.ArraySource(images, np.arange(50) % CLASSES, names, ["a", "b", "c"])
  return pipeline.train_iterator(
    source,
    batch_size=BATCH,
    image_size=16,
    crop="random",
    min_scale=0.5,
    seed=0,
    threads=0,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    companions={n: pipeline.Companion(source, source, "random", 0.5) for n in companions},
  )


class Run:
  """Steps of stages under one mode."""

  def __init__(self, mode, fsdp, devices=None):
    self.mode = mode
    self.devices = sharding.make_parallel(mode, fsdp=fsdp, devices=devices)
    self.config, self.key, self.restored = make_config(), jax.random.key(0), {}

  def start(self, name):
    """(stage, its first state) on what the earlier stages began with."""
    for earlier in (*STAGES[name].sources, name):
      if earlier not in self.restored or earlier == name:
        stage = build(earlier, self.config, CLASSES)
        before = {source: self.restored[source] for source in stage.sources}
        state = stage.init(self.key, (BATCH, 16, 16, 3), before)
        kept = {"params": state.params, "ema": state.ema, "variables": state.variables}
        self.restored[earlier] = kept
    return stage, state

  def train(self, name, directory=None, resume=False):
    """{"STAGE/…": array} of every step's metrics and the final parameters; saves the state after
    step SAVED in directory, or goes on from it."""
    stage, state = self.start(name)
    data, found, first = start_data(stage.companion_names), {}, 0
    step, key = self.devices.compile_step(stage.step), self.devices.put_key(self.key)
    if resume:
      state, _ = checkpoint.Checkpoints(directory).restore(state, iterator=data)
      first = SAVED
    state = self.devices.put_state(state)
    for number in range(first, STEPS):
      state, metrics = step(state, self.devices.put_batch(next(data)), key)
      found |= {f"{name}/{number}/{n}": np.asarray(x) for n, x in metrics.items()}
      if directory and number + 1 == SAVED and not resume:
        with contextlib.closing(checkpoint.Checkpoints(directory)) as checkpoints:
          replica = self.devices.get_state(state.replace(frozen={}))
          checkpoints.save(SAVED, replica, iterator=data, wait=True)
    self.again = lambda: step(state, self.devices.put_batch(next(data)), key)
    params = self.devices.get_state(state.replace(frozen={})).params
    if self.mode == "jit":
      params = multihost_utils.process_allgather(params, tiled=True)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return found | {f"{name}/{jax.tree_util.keystr(path)}": np.asarray(x) for path, x in leaves}


def agree():
  """After how many steps each process stops, when the second one gets a SIGTERM before one."""
  with StopSignals() as stop:
    for number in range(200):
      if number == 3 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      if stop.agreed():
        break
      time.sleep(0.02 * (1 + jax.process_index()))
  return [int(part) for part in processes.gather(str(number).encode())]


def main(flags):
  out = pathlib.Path(flags.out)
  sharding.MIN_SHARDED_SIZE = 64  # fsdp splits even these arrays
  for text in flags.runs:
    mode, fsdp, names = text.split(":")
    run, found = Run(mode, int(fsdp)), {}
    for name in names.split("+"):
      began = time.process_time()
      found |= run.train(name, out / f"{mode}-{name}")
      print(f"{mode} {name}: {time.process_time() - began:.0f} s of this process", flush=True)
    if processes.is_first():
      np.savez(out / f"{mode}.npz", **found)
  stops = agree()
  if processes.is_first():
    (out / "stops.json").write_text(json.dumps(stops))
  processes.wait_for_all("all is written")
  if flags.last == "death":
    if jax.process_index() == 1:
      os.kill(os.getpid(), signal.SIGKILL)
    jax.block_until_ready(run.again())


def define_flags(flags):
  flags.group("Steps")
  flags.string("out", None, "A folder that is there.")
  flags.list("runs", None, "MODE:FSDP:STAGE+STAGE")
  flags.enum("last", "death", ("death", "stop"), "How it ends")


if __name__ == "__main__":
  command.run(
    command.Command(main, define_flags, __doc__, required=("out", "runs"), processes="train")
  )
