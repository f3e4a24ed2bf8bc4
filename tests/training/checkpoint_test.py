"""Checkpoints come back as they were, or the damage is named and an older one serves."""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
from contextlib import closing

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imgtx_jax.data import pipeline, sources
from imgtx_jax.distributed.sharding import make_parallel
from imgtx_jax.errors import UserError
from imgtx_jax.training import checkpoint, checkpoint_manifest, checksums
from imgtx_jax.training.checkpoint import Checkpoints, load
from imgtx_jax.training.train_state import TrainState


def make_state(step=0, scale=1.0):
  """float32, bfloat16, integers, a scalar, an array without elements, empty dicts, a list."""
  rng = np.random.default_rng(7)
  net = {
    "layers": {"kernel": scale * rng.normal(size=(2, 16, 64)).astype(np.float32)},
    "half": np.asarray(jnp.asarray(rng.normal(size=(4, 8)), jnp.bfloat16)),
    "nothing": {},
  }
  opt_state = {"net": optax.adamw(1e-3).init(net), "idle": {}}
  variables = {"bank": rng.integers(0, 9, (5, 3)), "unused": np.zeros((0, 3), np.float32)}
  variables |= {"list": [np.float32(1.5), np.arange(3)], "none": {}}
  return TrainState(
    step=np.int32(step),
    params={"net": net},
    opt_state=jax.tree.map(np.asarray, opt_state),
    ema={"net": net},
    variables=variables,
    frozen={},
  )


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  dtypes = lambda tree: [np.asarray(x).dtype for x in jax.tree.leaves(tree)]  # noqa: E731
  assert dtypes(ours) == dtypes(theirs)


@pytest.fixture
def saved(tmp_path):
  """A directory with steps 1 and 2, which differ."""
  directory = tmp_path / "1-tokenizer" / "checkpoints"
  with closing(Checkpoints(directory)) as checkpoints:
    checkpoints.save(1, make_state(1, scale=1.0), meta={"seconds": 1.5})
    checkpoints.save(2, make_state(2, scale=2.0), meta={"seconds": np.float32(2.5)})
  return directory


def latest(directory):
  """The newest intact step, or None."""
  try:
    return int(load(directory)[0]["step"])
  except UserError:
    return None


def test_roundtrip(saved):
  checkpoints = Checkpoints(saved)
  assert latest(saved) == 2
  like = make_state().replace(frozen={"vgg": np.ones(3)})
  state, meta = checkpoints.restore(like)
  assert_same(state, make_state(2, scale=2.0).replace(frozen=like.frozen))
  assert state.frozen is like.frozen and meta == {"seconds": 2.5}
  older, meta = checkpoints.restore(like, step=1)
  assert int(older.step) == 1 and meta == {"seconds": 1.5}


def test_load_without_structure(saved):
  tree, meta = load(saved)
  expected = make_state(2, scale=2.0)
  assert set(tree) == {"step", "params", "ema", "variables", "rate"} and meta == {"seconds": 2.5}
  assert_same(tree["params"], expected.params)
  assert tree["variables"]["none"] == {} and tree["variables"]["list"]["0"] == 1.5
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(tree))
  assert int(load(saved, step=1)[0]["step"]) == 1


def test_missing(tmp_path, saved):
  with pytest.raises(UserError, match=r"imgtx_jax\.main .*--workdir /.*work$"):
    load(tmp_path / "work" / "1-tokenizer" / "checkpoints")
  with pytest.raises(UserError, match="step 5 .*found: .2, 1"):
    load(saved, step=5)
  fresh = Checkpoints(tmp_path / "none")
  assert latest(tmp_path / "none") is None and not (tmp_path / "none").exists()
  with pytest.raises(UserError, match="no intact checkpoint"):
    fresh.restore(make_state())


def largest_file(directory):
  return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, at):
  data = bytearray(path.read_bytes())
  data[int(at * len(data))] ^= 4
  path.write_bytes(data)


def damage_bit(step):
  flip(largest_file(step / "arrays"), 0.5)


def damage_record(step):
  flip(step / "record" / "metadata", 0.7)


def damage_truncate(step):
  path = largest_file(step / "arrays")
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(step):
  shutil.rmtree(step)
  step.mkdir()


def damage_commit(step):
  (step / "commit_success.txt").unlink()


def damage_delete(step):
  shutil.rmtree(step / "arrays")


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (damage_bit, "checksum of array "),
    (damage_record, "record"),
    (damage_truncate, "arrays are unreadable"),
    (damage_empty, "directory is empty"),
    (damage_commit, "commit is missing"),
    (damage_delete, "arrays are unreadable"),
  ],
)
def test_damage_falls_back(saved, damage, words, caplog):
  damage(saved / "2")
  checkpoints = Checkpoints(saved)
  for read in (lambda: checkpoints.restore(make_state()), lambda: load(saved)):
    caplog.clear()
    result = read()
    assert words in caplog.text and str(saved / "2") in caplog.text
    assert result[1] == {"seconds": 1.5}
  # A resumed run reaches step 2 again: it replaces the damaged one.
  checkpoints.save(2, make_state(2, scale=3.0), wait=True)
  checkpoints.close()
  assert latest(saved) == 2
  assert_same(load(saved)[0]["params"], make_state(2, scale=3.0).params)
  damage(saved / "1")
  damage(saved / "2")
  assert latest(saved) is None
  assert Checkpoints(saved).restore(make_state(), missing_ok=True) == (None, None)


def test_every_flipped_bit_is_seen(saved):
  """Wherever the bit lies, what is restored is what was saved."""
  path = largest_file(saved / "2" / "arrays")
  data = path.read_bytes()
  for at in np.linspace(0.01, 0.99, 8):
    flip(path, at)
    tree, _ = load(saved)
    scale = {1: 1.0, 2: 2.0}[int(tree["step"])]
    assert_same(tree["params"], make_state(scale=scale).params)
    path.write_bytes(data)


def test_keeps_newest_and_skips_the_same(tmp_path):
  with closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(step))
    checkpoints.wait()
    written = (tmp_path / "3").stat().st_mtime_ns
    checkpoints.save(3, make_state(3), wait=True)
  assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "3"]
  assert (tmp_path / "3").stat().st_mtime_ns == written


def test_the_best_is_kept_beside_the_newest(tmp_path):
  def kept():
    return sorted(int(p.name) for p in tmp_path.iterdir() if p.is_dir())

  with closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
    for step in (1, 2, 3, 4, 5):
      checkpoints.save(step, make_state(step), best=2 if step > 1 else None)
    checkpoints.wait()
    assert kept() == [2, 4, 5] and checkpoints.has(2) and not checkpoints.has(3)
  # A resumed run keeps it too, until there is a better one.
  with closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
    checkpoints.restore(make_state())
    checkpoints.save(6, make_state(6), best=2, wait=True)
    assert kept() == [2, 5, 6]
    checkpoints.save(7, make_state(7), best=7, wait=True)
    checkpoints.save(8, make_state(8), best=7, wait=True)
  assert kept() == [7, 8] and int(load(tmp_path, step=7)[0]["step"]) == 7


def test_keeps_those_of_every_so_many_steps_too(tmp_path):
  with closing(Checkpoints(tmp_path, keep=1, keep_every=4)) as checkpoints:
    for step in (2, 4, 6, 8, 10):
      checkpoints.save(step, make_state(step))
  assert sorted(int(p.name) for p in tmp_path.iterdir() if p.is_dir()) == [4, 8, 10]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_another_number_of_processes_goes_on_in_the_same_order(before, after, monkeypatch):
  """What each of `after` processes reads next, after each of `before` has read three batches."""
  source = sources.ArraySource(np.zeros((23, 4, 4, 3), np.uint8), np.arange(23), "a" * 23, "a" * 23)

  def start(index, count):
    options = dict(batch_size=8, image_size=4, crop="center", min_scale=1.0, seed=1, threads=0)
    return pipeline.train_iterator(source, **options, process_index=index, process_count=count)

  positions = []
  for index in range(before):
    iterator = start(index, before)
    for _ in range(3):
      next(iterator)
    positions.append(json.loads(json.dumps(iterator.get_state())))
  whole = start(0, 1)
  expected = [next(whole)["label"] for _ in range(5)][3:]
  monkeypatch.setattr(jax, "process_count", lambda: after)
  found = []
  for index in range(after):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    iterator = start(index, after)
    checkpoint_manifest.set_position(iterator, positions)
    found.append([next(iterator)["label"] for _ in range(2)])
  np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)


def test_what_changes_after_a_save_is_saved_as_it_was(tmp_path):
  state = make_state(1)
  big = np.random.default_rng(0).normal(size=(1024, 1024))
  state.variables["big"], expected = big, big.copy()
  with closing(Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(1, state)
    big[:] = 0
  np.testing.assert_array_equal(load(tmp_path)[0]["variables"]["big"], expected)


def test_saves_that_follow_each_other_hold_their_own_values(tmp_path):
  state = make_state(1)
  big = np.random.default_rng(0).normal(size=(1024, 1024))
  with closing(Checkpoints(tmp_path, keep=3)) as checkpoints:
    for step in (1, 2, 3):  # each takes over the memory of the last one's copies
      state.variables["big"] = step * big
      checkpoints.save(step, state)
  for step in (1, 2, 3):
    np.testing.assert_array_equal(load(tmp_path, step=step)[0]["variables"]["big"], step * big)


def test_older_resume_replaces_newer(saved):
  with closing(Checkpoints(saved)) as checkpoints:
    checkpoints.restore(make_state(), step=1)
    checkpoints.save(2, make_state(2, scale=5.0))
  assert_same(load(saved)[0]["params"], make_state(2, scale=5.0).params)


def test_kill_during_save(saved):
  """What a killed save leaves is ignored, and cleared away by the next save."""
  (saved / "2").rename(saved / "2.orbax-checkpoint-tmp")
  (saved / "2.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
  checkpoints = Checkpoints(saved)
  assert latest(saved) == 1
  state, _ = checkpoints.restore(make_state())
  checkpoints.save(2, state.replace(step=np.int32(2)))
  checkpoints.close()
  assert sorted(p.name for p in saved.iterdir()) == ["1", "2"] and latest(saved) == 2


def test_full_disk(saved):
  """A file-size limit fails in the background write, as a full disk does."""
  big = make_state(3)
  big.variables["big"] = np.random.default_rng(0).normal(size=(512, 512))
  checkpoints = Checkpoints(saved)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
  try:
    with pytest.raises(UserError, match=r"free space .* intact: \[2, 1\]"):
      checkpoints.save(3, big)
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  checkpoints.wait()  # said once
  assert latest(saved) == 2
  checkpoints.save(3, big, wait=True)  # space again
  checkpoints.close()
  assert latest(saved) == 3


def test_full_disk_at_once(saved, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  checkpoints = Checkpoints(saved)
  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
  with pytest.raises(UserError, match="No space left"):
    checkpoints.save(3, make_state(3))
  assert latest(saved) == 2


def test_other_model(saved):
  like = make_state()
  like.params["net"]["layers"]["kernel"] = np.zeros((3, 16, 64), np.float32)
  with pytest.raises(UserError, match=r"kernel is \(\(2, 16, 64\), 'float32'\) there"):
    Checkpoints(saved).restore(like)
  with pytest.raises(UserError, match="variables is absent there but an empty dict here"):
    Checkpoints(saved).restore(make_state().replace(variables={}))


KERNEL_RULE = [("kernel", 2)]


@pytest.mark.parametrize("writer", ["pmap", "fsdp"])
@pytest.mark.parametrize("reader", ["pmap", "fsdp", "one"])
def test_between_modes(tmp_path, writer, reader):
  """Saved by one mode, trained on meanwhile with donation, restored by another."""
  make = {
    "pmap": lambda: make_parallel("pmap"),
    "fsdp": lambda: make_parallel("jit", fsdp=4, rules=KERNEL_RULE),
    "one": lambda: make_parallel("jit", devices=jax.devices()[:1]),
  }
  bump = lambda s, b, k, *, axis: (  # noqa: E731
    s.replace(step=s.step + 1, params=jax.tree.map(lambda x: x + 1, s.params)),
    {},
  )
  arrays = jax.tree.map(jnp.asarray, make_state(4))
  parallel = make[writer]()
  batch, key = parallel.put_batch({"x": np.zeros((4, 1), np.float32)}), jax.random.key(0)
  state, run = parallel.put_state(arrays), parallel.compile_step(bump)
  with closing(Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(4, parallel.get_state(state))
    for _ in range(3):  # overwrites the buffers while the save goes on
      state, _ = run(state, batch, key)

  parallel = make[reader]()
  batch = parallel.put_batch({"x": np.zeros((4, 1), np.float32)})
  restored, _ = Checkpoints(tmp_path).restore(parallel.abstract(arrays))
  assert_same(jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, arrays))
  state, _ = parallel.compile_step(bump)(parallel.put_state(restored), batch, key)
  host = jax.tree.map(np.asarray, parallel.get_state(state))
  np.testing.assert_array_equal(host.ema["net"]["half"], arrays.params["net"]["half"])
  np.testing.assert_allclose(
    host.params["net"]["layers"]["kernel"], arrays.params["net"]["layers"]["kernel"] + 1
  )
  if reader == "fsdp":
    shard = state.params["net"]["layers"]["kernel"].addressable_shards[0]
    assert shard.data.shape == (2, 16, 16)


def test_data_position(tmp_path):
  def data():
    dataset = grain.MapDataset.range(50).shuffle(seed=3).repeat().batch(4)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2)))

  iterator = data()
  for _ in range(3):
    next(iterator)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, make_state(3), iterator=iterator)
  expected = [next(iterator) for _ in range(12)]
  checkpoints.close()
  iterator = data()
  checkpoints.restore(make_state(), iterator=iterator)
  np.testing.assert_array_equal([next(iterator) for _ in range(12)], expected)


def test_killed_process(saved):
  """SIGKILL in the middle of a save: the step before restores."""
  here = pathlib.Path(__file__).parent
  root = here.parents[1]
  program = f"""
import os, signal, sys
sys.path[:0] = {[str(here), str(root)]}
import checkpoint_test as t
checkpoints = t.Checkpoints({str(saved)!r})
big = t.make_state(3)
big.variables["big"] = t.np.random.default_rng(0).normal(size=(2048, 1024))
checkpoints.save(3, big)
os.kill(os.getpid(), signal.SIGKILL)
"""
  run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert run.returncode == -9, run.stderr
  assert latest(saved) == 2


def test_checksum_of_shards():
  """Any split gives the whole's checksum; any changed bit or swap changes it."""
  x = np.random.default_rng(0).normal(size=(8, 4, 3)).astype(np.float32)
  whole = checksums.checksums({"x": x})["x"]
  mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  for spec in [("a", "b"), (None, ("a", "b")), ("b",), ()]:
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    shards = [s for s in jax.device_put(x, sharding).addressable_shards if s.replica_id == 0]
    parts = [checksums._part(np.asarray(s.data), s.index, x.shape) for s in shards]
    assert sum(parts) % 2**64 == whole
  for change in (x.T.copy().reshape(x.shape), -x, x[::-1]):
    assert checksums.checksums({"x": change})["x"] != whole
  big = np.arange(3_000_000, dtype=np.int32).reshape(3, -1)  # more than a chunk
  weights = 2 * np.arange(big.size, dtype=np.uint64) + 1
  expected = int((big.reshape(-1).astype(np.uint64) * weights).sum())
  assert checksums.checksums({"x": big})["x"] == expected


def test_record_is_json(saved):
  stored = json.loads((saved / "2" / "record" / "metadata").read_text())
  assert json.loads(stored["text"])["meta"] == {"seconds": 2.5}
