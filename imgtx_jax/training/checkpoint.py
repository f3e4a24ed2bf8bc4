"""Checkpoints of a stage: written in the background, verified when read. The only user of Orbax.

A step directory holds two Orbax items: `arrays`, a flat dict {"params/gpt/head/kernel": array} of
the state without its frozen networks, and `record`, see checkpoint_manifest.py.

Orbax restores a flipped bit silently and trusts an empty step directory, so every array carries a
checksum; a damaged step is named in the log and passed over for the next older one.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError, first_line
from imgtx_jax.io.atomic import disk_fault
from imgtx_jax.training import checkpoint_manifest as records
from imgtx_jax.training import checksums, host_buffers


class _Damaged(Exception):
  """A step directory that cannot be trusted; says why."""


class _Manager(ocp.CheckpointManager):
  """Leaves preemption to the training loop (processes.should_stop): Orbax would ask jax's service
  about it with step numbers, in other threads too, and the processes would miss each other."""

  def reached_preemption(self, step):
    return False


class Checkpoints:
  """The checkpoints of one stage, in `directory`.

  The newest `keep` of them stay, those whose step is a multiple of `keep_every` (0: none), and the
  best. All processes of a run make the same calls in the same order.
  """

  def __init__(self, directory, *, keep=2, keep_every=0):
    self.directory = epath.Path(directory).absolute()
    self._keep = [policies.LatestN(keep)]
    if keep_every:
      self._keep.append(policies.EveryNSteps(keep_every))
    self._kept = policies.AnyPreservationPolicy(self._keep)
    self._manager = None  # made by the first save: reading never writes
    self._copies = host_buffers.HostCopies()
    self._current = None  # the step that this object saved or restored last

  def reserve(self, state):
    """Allocates memory for saves of a state in the background; state: from Parallel.abstract."""
    self._copies.reserve(records.flatten(state)[0])

  def save(self, step, state, *, iterator=None, meta=None, best=None, wait=False):
    """Writes `state` (one replica, see `Parallel.get_state`) but its frozen networks.

    Returns once the arrays are copied and may be donated; with `wait` once they are on disk.
    iterator: the training data's; its position is stored. meta: a dict fit for JSON. best: the step
    that is kept however old it gets, until another is named; None for none. Directories of this and
    later steps, left behind by a run that was since resumed from an older step, are replaced. An
    error of the background write is raised by the next save, wait or close.
    """
    step = int(step)
    self.wait()
    self._kept.policies = [*self._keep, policies.CustomSteps([] if best is None else [best])]
    if step == self._current:
      return  # saved already, or restored and not trained since
    arrays, empty = records.flatten(state)
    # Nobody changes a NumPy array while this waits: it need not be in memory twice.
    stay = np.ndarray if wait else ()
    arrays = {n: x if isinstance(x, stay) else self._copies.take(n, x) for n, x in arrays.items()}
    items = ocp.args.Composite(
      # Orbax refuses arrays without elements: the record alone restores them.
      arrays=ocp.args.PyTreeSave({name: x for name, x in arrays.items() if x.size}),
      record=ocp.args.JsonSave(records.make(arrays, empty, iterator, meta)),
    )
    try:
      self._prepare(step)
      self._manager.save(step, args=items, force=True)
    except Exception as error:
      self._failed(error)
    self._current = step
    if wait:
      self.wait()

  def restore(self, like_state, *, step=None, iterator=None, missing_ok=False):
    """Reads the newest intact step once, every checksum verified, and names damage in the log.

    Args:
      like_state: structure and placement. Arrays and ShapeDtypeStructs with a sharding are restored
        to it, NumPy arrays and bare ShapeDtypeStructs as NumPy; its frozen networks are kept.
      step: steps after this one are passed over.
      iterator: is set to the position in the data that was saved with the state.
      missing_ok: returns (None, None) where there is no intact step, instead of a UserError.

    Returns: (state, meta); all processes find the same step.
    """

    def read(path):
      with _agreed():
        record = _read_record(path)
      like, empty = records.flatten(like_state)
      records.check_structure(path, record, like, empty)
      with _agreed():
        arrays = _read_arrays(path, record, like)
      _check_sums(record, arrays)
      return arrays, record

    steps = json.loads(processes.gather(json.dumps(_steps(self.directory)).encode())[0])
    steps = [s for s in steps if step is None or s <= step]
    for found, (arrays, record) in _intact(self.directory, steps, read):
      treedef = jax.tree.structure(like_state.replace(frozen={}))
      state = jax.tree.unflatten(treedef, arrays.values())
      if iterator is not None:
        records.set_position(iterator, record["positions"])
      self._current = found
      return state.replace(frozen=like_state.frozen), record["meta"]
    if missing_ok:
      return None, None
    raise UserError(
      f"no intact checkpoint in {self.directory} (found: {steps or 'none'}): "
      "delete that directory to train the stage from its start"
    )

  def has(self, step):
    """Returns whether there is a directory of that step, intact or not."""
    return int(step) in _steps(self.directory)

  def wait(self):
    """Waits until the last save is on disk; raises its error."""
    if self._manager is not None:
      try:
        self._manager.wait_until_finished()
      except Exception as error:
        self._failed(error)

  def close(self):
    """Waits and ends the background threads."""
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None
    self._copies.clear()

  def _prepare(self, step):
    """Clears the way for `step` and makes the manager."""
    removed = []
    if jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      removed = [str(s) for s in _steps(self.directory) if s >= step]
      if removed:
        logging.warning("%s: step %d replaces %s", self.directory, step, ", ".join(removed))
      # What a killed run was writing.
      removed += [p.name for p in self.directory.iterdir() if ".orbax-checkpoint-tmp" in p.name]
      for name in removed:
        (self.directory / name).rmtree(missing_ok=True)
    removed = json.loads(processes.gather(json.dumps(removed).encode())[0])
    if self._manager is None:
      options = ocp.CheckpointManagerOptions(preservation_policy=self._kept, create=False)
      handlers = {"arrays": _array_handler(), "record": ocp.JsonCheckpointHandler()}
      self._manager = _Manager(self.directory, options=options, item_handlers=handlers)
    elif removed:
      self._manager.reload()

  def _failed(self, error):
    """Lets go of a manager that could not write, and tells the user if the disk is why."""
    manager, self._manager, self._current = self._manager, None, None
    self._copies.clear()  # who knows what still reads them
    if manager is not None:
      try:
        manager.close()
      except Exception as again:
        logging.debug("closing after a failed save: %s", again)
    disk = disk_fault(error)
    if disk or isinstance(error, OSError):
      reason = disk or first_line(error)
      raise UserError(
        f"cannot write a checkpoint to {self.directory} ({reason}): free space or "
        f"choose another --workdir, then run the same command; earlier steps are intact: "
        f"{_steps(self.directory) or 'none'}"
      ) from error
    raise error


def load(directory, *, step=None):
  """Returns (nested dicts of NumPy arrays, meta) of the newest intact step, for later stages.

  The dicts are the fields of TrainState without the optimizer state and frozen networks; lists
  become dicts of "0", "1", … step: the only step to read. Raises UserError if there is none.
  """
  directory = epath.Path(directory).absolute()

  def read(path):
    record = _read_record(path)
    names = [name for name in record["arrays"] if not name.startswith("opt_state")]
    arrays = _read_arrays(path, record, dict.fromkeys(names))
    _check_sums(record, arrays)
    return arrays, record

  steps = [s for s in _steps(directory) if step is None or s == step]
  for _, (arrays, record) in _intact(directory, steps, read):
    empty = {name: {} for name in record["empty"] if not name.startswith("opt_state")}
    return records.nest(empty | arrays), record["meta"]
  wanted = "intact checkpoint" if step is None else f"intact checkpoint of step {step}"
  raise UserError(
    f"no {wanted} in {directory} (found: {_steps(directory) or 'none'}): train that stage first, "
    f"python -m imgtx_jax.main --config configs/NAME.py --workdir {directory.parent.parent}"
  )


def _array_handler():
  """Orbax's handler of dicts of arrays. It writes NumPy arrays without copying them first: what
  `save` gives it does not change any more."""
  ours = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.get_type_handler(jax.Array)),
  )
  return ocp.PyTreeCheckpointHandler(type_handler_registry=ours)


def _steps(directory):
  """Steps with a directory of their own, newest first; half-written ones have another name."""
  if not directory.exists():
    return []
  return sorted((int(p.name) for p in directory.iterdir() if p.name.isdecimal()), reverse=True)


def _intact(directory, steps, read):
  """Yields (step, read(its directory)) of the intact ones of `steps`; warns of the others."""
  for step in steps:
    try:
      result = read(directory / str(step))
    except _Damaged as damage:
      logging.warning("checkpoint %s is damaged, passed over: %s", directory / str(step), damage)
    else:
      yield step, result


@contextlib.contextmanager
def _agreed():
  """Raises in every process the damage that any of them meets in the block."""
  problem = ""
  try:
    yield
  except _Damaged as damage:
    problem = str(damage)
  if found := b"".join(processes.gather(problem.encode())):
    raise _Damaged(problem or f"another process says: {found.decode()}")


def _read_record(path):
  """The record of a step directory, proven complete and intact."""
  if not any(path.iterdir()):
    raise _Damaged("the directory is empty")
  if not (path / "commit_success.txt").exists():  # Orbax's last word before it renames
    raise _Damaged("its commit is missing: the save did not finish")
  try:
    stored = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "record")
    record = records.parse(stored)
  except Exception as error:
    raise _Damaged(f"its record is unreadable ({first_line(error)})") from error
  if record is None:
    raise _Damaged("the checksum of its record is wrong")
  return record


def _read_arrays(path, record, like):
  """{name: array} for the names in `like`, placed like its leaves (None: NumPy)."""
  wanted, arrays = {}, {}
  for name, x in like.items():
    shape, dtype = tuple(record["arrays"][name]["shape"]), record["arrays"][name]["dtype"]
    sharding = getattr(x, "sharding", None)
    if 0 in shape:
      dtype = jnp.dtype(dtype)
      placed = sharding is not None
      arrays[name] = jnp.zeros(shape, dtype, device=sharding) if placed else np.zeros(shape, dtype)
    elif sharding is None:
      wanted[name] = ocp.RestoreArgs(restore_type=np.ndarray)
    else:
      wanted[name] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape)
  if wanted:
    args = ocp.args.PyTreeRestore(dict.fromkeys(wanted, 0), wanted, partial_restore=True)
    try:
      arrays |= ocp.Checkpointer(_array_handler()).restore(path / "arrays", args=args)
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
      raise  # not the checkpoint's fault
    except Exception as error:
      raise _Damaged(f"its arrays are unreadable ({first_line(error)})") from error
  return {name: arrays[name] for name in like}


def _check_sums(record, arrays):
  """_Damaged where the checksum of an array is not the record's; the same in all processes."""
  sums = checksums.checksums(arrays)
  wrong = [name for name in arrays if sums[name] != record["arrays"][name]["checksum"]]
  if wrong:
    raise _Damaged(f"the checksum of array {wrong[0]} is wrong ({len(wrong)} in all)")
