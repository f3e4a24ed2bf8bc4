"""An evaluation by two processes that share a folder gives the results of one."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
sys.path[:0] = {paths}
import jax
import jax.numpy as jnp
import numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
index = int(sys.argv[1])
jax.distributed.initialize("localhost:{port}", 2, index)
assert jax.process_count() == 2 and jax.local_device_count() == 2
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import feature_store, image_sets, inputs, reference, runner
from imgtx_jax.evaluate.metrics_registry import Settings
from imgtx_jax.evaluate.feature_networks import FeatureNetwork
feature_store.SHARD = 5
draw = np.random.default_rng(0)
params = {{
  "features": draw.normal(size=(48, 6)).astype(np.float32),
  "logits": 4 * draw.normal(size=(48, 5)).astype(np.float32),
}}
def apply(params, images):
  blocks = images.astype(jnp.float32).reshape(len(images), 4, 4, 4, 4, 3) / 255
  means = blocks.mean((2, 4)).reshape(len(images), -1)
  return {{n: jnp.matmul(means, m, precision="highest") for n, m in params.items()}}
network = FeatureNetwork("tiny", "FD-Tiny", "none", "ab" * 32, params, apply)
samples = image_sets.open_files({samples!r})
widths = inputs.widths(network, samples.size)
compared = reference.open_reference({reference!r}, network, widths)
found = inputs.EvaluationInputs(network, widths, samples=samples, reference=compared)
done = []
def evaluator(out, report):
  return runner.Evaluator(
    network, Settings(kid_subset_size=10, kid_subsets=5, splits=2), out={out!r} + out,
    shared={out!r} + out, batch_size=4, report=report,
  )
result = evaluator("", lambda title, count, total: done.append(count)).run(
  found, save_npz={out!r} + "/samples.npz"
)
def broken(title, count, total):
  if index == 1:
    raise UserError("made on purpose")
try:
  evaluator("-broken", broken).run(found)
  error = ""
except UserError as caught:
  error = str(caught)
open({out!r} + f"/told-{{index}}.json", "w").write(json.dumps([done, result, error]))
"""


@pytest.fixture
def two(folders, tmp_path):
  """What each of two processes told: [images a batch, the result, the error]."""
  tests = pathlib.Path(__file__).parents[1]
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  out = tmp_path / "two"
  out.mkdir()
  program = PROGRAM.format(
    paths=[str(tests.parent)],
    port=port,
    samples=str(folders[0]),
    reference=str(folders[1]),
    out=str(out),
  )
  environment = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "NPROC": "16",
    "PATH": "/usr/bin:/bin",
  }
  running = [
    subprocess.Popen(
      [sys.executable, "-c", program, str(index)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in (0, 1)
  ]
  try:
    texts = [process.communicate(timeout=120)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  assert [process.returncode for process in running] == [0, 0], texts
  return [json.loads((out / f"told-{index}.json").read_text()) for index in (0, 1)], texts, out


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(two, evaluate, folders, small_shards, tmp_path):
  ((done, found, error), (others, nothing, other_error)), texts, out = two
  one = evaluate(*folders, save_npz=str(tmp_path / "one.npz"))
  assert nothing is None
  values = {name: result["value"] for name, result in found["results"].items()}
  expected = {name: result["value"] for name, result in one["results"].items()}
  assert values == pytest.approx(expected, rel=1e-6)
  assert {f["computed_on"] for f in found["results"].values()} == {
    f["computed_on"] for f in one["results"].values()
  }
  # 23 samples and 31 references in shards of 5: every second one is done by either process.
  assert max(done) < 23 and max(others) < 23 and done and others
  assert found["protocol"]["samples"] == one["protocol"]["samples"]
  assert (out / "samples.npz").stat().st_size == (tmp_path / "one.npz").stat().st_size
  # The first process alone speaks.
  assert "skipped sfid" in texts[0] and "skipped sfid" not in texts[1]
  # And what goes wrong in one stops both.
  assert (error, other_error) == ("process 1: made on purpose", "made on purpose")
