"""Placement of arrays, and how a step runs on all devices; the only file that places arrays.

A step is written once, `step(state, batch, rng, *, axis) -> (state, metrics)`, and reduces by the
functions of collectives.py. Two modes run it:

  pmap  one program a device, the state replicated; the batch keeps a leading axis of devices;
        `axis` is a name, and the reductions are collectives over it.
  jit   one global program over a mesh (data × fsdp); `axis` is None, the reductions are
        identities, and named shardings place the parameters, split over devices if fsdp > 1.

Both give the same numbers (tests/distributed/sharding_test.py).
"""

import abc
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from imgtx_jax.errors import UserError

# pmap's axis and the mesh axis must share one name: pmap's outputs are sharded over a mesh of its
# axis name, and an input that is sharded under another name would compile every step twice.
AXIS = "data"
MIN_SHARDED_SIZE = 2**16  # smaller arrays are replicated: gathering them costs more than it saves
_SCANNED = re.compile(r"(^|[/_])layers($|[/_])")  # a path component "layers" or "..._layers"


def make_parallel(mode, *, fsdp=1, rules=(), devices=None):
  """Returns a `Parallel`.

  Args:
    mode: "pmap" or "jit".
    fsdp: number of devices that each large array is split over; 1 under pmap.
    rules: (regex, axis or None) pairs. The first that is found in a path such as
      "params/generator/layers/mlp/kernel" decides which axis of that array is split; None: none.
    devices: default: those of all processes.
  """
  devices = list(jax.devices() if devices is None else devices)
  if mode == "pmap":
    if fsdp != 1:
      raise UserError(f"parallel mode pmap keeps whole replicas but fsdp is {fsdp}: use mode jit")
    return PmapParallel(devices)
  if mode == "jit":
    if fsdp < 1 or len(devices) % fsdp:
      raise UserError(f"fsdp {fsdp} does not divide the {len(devices)} devices: use a divisor")
    return JitParallel(devices, fsdp, rules)
  raise UserError(f"parallel mode {mode!r} is unknown: use 'pmap' or 'jit'")


class Parallel(abc.ABC):
  """Places states and batches on devices and compiles functions of them; see `make_parallel`.

  A placed state comes from `init_state`, `put_state`, `put_restored` or a compiled function. A
  compiled step or refresh donates the one it is given: do not use that one again.
  """

  def __init__(self, devices):
    self.devices = devices
    self.local_devices = [d for d in devices if d.process_index == jax.process_index()]
    # Steps dispatched ahead on several fake CPU devices can deadlock in their collectives.
    self._wait = devices[0].platform == "cpu" and len(devices) > 1

  @property
  def batch_divisor(self):
    """Returns the number that a global batch must be divisible by."""
    return len(self.devices)

  @abc.abstractmethod
  def init_state(self, init, key, sources):
    """Returns the placed state of `init(key, sources)`, a compiled function.

    No device holds more than its part of the state, and of the sources that init uses.
    sources: NumPy trees; the rules of a state place them.
    """

  @abc.abstractmethod
  def put_state(self, state):
    """Returns a placed copy of a state of host arrays, or of a part of one; safe to donate."""

  @abc.abstractmethod
  def put_restored(self, state):
    """Returns the placed state of what `Checkpoints.restore` gave for `abstract(state)`."""

  @abc.abstractmethod
  def get_state(self, state):
    """Returns one replica for a checkpoint: NumPy copies under pmap; under jit the global arrays
    themselves, which the next step donates."""

  @abc.abstractmethod
  def abstract(self, state):
    """Returns ShapeDtypeStructs for `Checkpoints.restore`, given the shapes of one replica."""

  @abc.abstractmethod
  def put_key(self, key):
    """Returns a key on all devices: one on the first alone is copied again at every step."""

  @abc.abstractmethod
  def put_batch(self, batch):
    """Places this process's part of a batch, NumPy arrays [b, ...]."""

  @abc.abstractmethod
  def compile_step(self, step):
    """Compiles `step(state, batch, rng, *, axis)` to a callable (state, batch, rng) → (state,
    metrics). Metrics are scalar jax arrays without a device axis; reading one waits for the step.
    """

  @abc.abstractmethod
  def compile_refresh(self, fn):
    """Compiles `fn(state, rng, *, axis)` → state to a callable (state, rng) → state."""

  @abc.abstractmethod
  def compile_sums(self, fn):
    """Compiles `fn(state, batch, rng, *, axis)` → sums over the local batch to a callable (state,
    batch, rng) → sums over the global batch, jax arrays. The state is not donated."""

  @abc.abstractmethod
  def compile_local(self, fn):
    """Compiles `fn(state, batch, rng)` → arrays to a callable that returns NumPy arrays.

    Its batch is small and not split: every process passes the same one and gets the same outputs.
    """

  def _waiting(self, fn):
    return (lambda *args: jax.block_until_ready(fn(*args))) if self._wait else fn

  def _check_batch(self, batch):
    size = len(jax.tree.leaves(batch)[0])
    if size % len(self.local_devices):
      raise UserError(
        f"a process's batch of {size} does not split over its {len(self.local_devices)} devices: "
        f"use a batch size that {self.batch_divisor} divides"
      )


class PmapParallel(Parallel):
  """Replicated data parallelism: every array has a leading axis of local devices."""

  def __init__(self, devices):
    # A process's rows of a batch are one block (data/pipeline.py), so its devices must be too.
    super().__init__(sorted(devices, key=lambda d: (d.process_index, d.id)))
    mesh = jax.sharding.Mesh(np.array(self.local_devices), (AXIS,))
    self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    self._pmap = functools.partial(jax.pmap, axis_name=AXIS, devices=self.devices)

  def init_state(self, init, key, sources):
    # Every device computes its own replica. Not by pmap: that would also place what init ignores.
    def replicas(key, sources):
      state, n = init(key, sources), len(self.local_devices)
      return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), state)

    everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
    run = jax.jit(replicas, in_shardings=everywhere, out_shardings=self._sharding)
    return self._waiting(run)(key, sources)

  def put_state(self, state):
    n = len(self.local_devices)

    def put(x):
      x = np.asarray(x)
      shape = (n, *x.shape)
      return jax.make_array_from_callback(shape, self._sharding, lambda _: np.array(x)[None])

    return jax.tree.map(put, state)

  def put_restored(self, state):
    return self.put_state(state)

  def get_state(self, state):
    shards = jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data, state))
    # A copy: on the CPU device_get is a view, which would keep the buffer from being donated.
    return jax.tree.map(lambda x: np.array(x[0]), shards)

  def abstract(self, state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

  def put_key(self, key):
    return jax.device_put(key, NamedSharding(self._sharding.mesh, PartitionSpec()))

  def put_batch(self, batch):
    self._check_batch(batch)
    n = len(self.local_devices)
    split = jax.tree.map(lambda x: x.reshape(n, len(x) // n, *x.shape[1:]), batch)
    return jax.device_put(split, self._sharding)

  def compile_step(self, step):
    step = functools.partial(step, axis=AXIS)
    axes = {"in_axes": (0, 0, None), "out_axes": (0, None)}  # None: metrics of the first device
    return self._waiting(self._pmap(step, **axes, donate_argnums=0))

  def compile_refresh(self, fn):
    fn = functools.partial(fn, axis=AXIS)
    return self._waiting(self._pmap(fn, in_axes=(0, None), donate_argnums=0))

  def compile_sums(self, fn):
    def sums(state, batch, rng):
      return jax.lax.psum(fn(state, batch, rng, axis=AXIS), AXIS)

    return self._waiting(self._pmap(sums, in_axes=(0, 0, None), out_axes=None))

  def compile_local(self, fn):
    # One device of each process is enough: all replicas would compute the same.
    @jax.jit
    def run(replica, batch, rng):
      return fn(jax.tree.map(lambda x: x[0], replica), batch, rng)

    def local(state, batch, rng):
      replica = jax.tree.map(lambda x: x.addressable_shards[0].data, state)
      return jax.device_get(run(replica, batch, rng))

    return local


class JitParallel(Parallel):
  """One program over a mesh: the batch is split over all devices, large arrays over fsdp."""

  def __init__(self, devices, fsdp, rules):
    super().__init__(devices)
    self.fsdp = fsdp
    self.rules = tuple((re.compile(pattern), axis) for pattern, axis in rules)
    shape, auto = (len(devices) // fsdp, fsdp), (AxisType.Auto, AxisType.Auto)
    # jax.make_mesh refuses an fsdp of 4 on v6e:8x8, or of 8 on v5p:4x4x4: a part of a torus's side.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    self.mesh = jax.sharding.Mesh(grid, (AXIS, "fsdp"), axis_types=auto)
    self._replicated = NamedSharding(self.mesh, PartitionSpec())
    self._batch = NamedSharding(self.mesh, PartitionSpec((AXIS, "fsdp")))

  def shardings(self, state):
    """Returns the tree of NamedShardings of a state, given its arrays or shapes.

    Paths of optimizer state and averages end in their parameter's path, and their shapes are the
    same: so the same rules give them the same sharding.
    """

    def sharding(path, x):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      axis = _split_axis(name, x.shape, self.fsdp, self.rules)
      if axis is None:
        return self._replicated
      return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(sharding, state)

  def init_state(self, init, key, sources):
    shapes = jax.eval_shape(init, key, sources)
    arguments = self._replicated, self.shardings(sources)
    run = jax.jit(init, in_shardings=arguments, out_shardings=self.shardings(shapes))
    return self._waiting(run)(key, sources)

  def put_state(self, state):
    return jax.tree.map(_place, state, self.shardings(state))

  def put_restored(self, state):
    # On a CPU replicas may share one buffer on the host, which a donating step of every device
    # would write to.
    on_cpu = self.devices[0].platform == "cpu"
    return jax.tree.map(_with_own_buffers, state) if on_cpu else state

  def get_state(self, state):
    return state

  def abstract(self, state):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, self.shardings(state)
    )

  def put_key(self, key):
    return jax.jit(lambda x: x, out_shardings=self._replicated)(key)

  def put_batch(self, batch):
    self._check_batch(batch)
    put = functools.partial(jax.make_array_from_process_local_data, self._batch)
    return jax.tree.map(put, batch)

  def compile_step(self, step):
    return self._compile(step, has_metrics=True)

  def compile_refresh(self, fn):
    return self._compile(fn, has_metrics=False)

  def _compile(self, fn, has_metrics):
    # Shardings of the state are pinned at the first call, or XLA may choose others for the new
    # state: the next call would then compile again.
    compiled = None

    def call(state, *args):
      nonlocal compiled
      compiled = compiled or self._jit(fn, state, has_metrics)
      return compiled(state, *args)

    return self._waiting(call)

  def _jit(self, fn, state, has_metrics):
    out = jax.tree.map(lambda x: x.sharding, state)
    out = (out, self._replicated) if has_metrics else out
    return jax.jit(self._whole(fn), donate_argnums=0, out_shardings=out)

  def _whole(self, fn):
    """fn of the whole batch; see _on_mesh."""
    return self._on_mesh(functools.partial(fn, axis=None))

  def _on_mesh(self, fn):
    """fn traced under this mesh, which collectives.split_rows and attention kernels read."""

    def run(*args):
      with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
        return fn(*args)

    return run

  def compile_sums(self, fn):
    return self._waiting(jax.jit(self._whole(fn), out_shardings=self._replicated))

  def compile_local(self, fn):
    run = jax.jit(self._on_mesh(fn), out_shardings=self._replicated)

    def local(state, batch, rng):
      batch = jax.tree.map(lambda x: _place(x, self._replicated), batch)
      return jax.device_get(run(state, batch, rng))

    return local


def _split_axis(path, shape, fsdp, rules):
  """The axis of the array at `path` of the state that is split over fsdp devices; None: replicated.

  The first of `rules`, (compiled regex, axis or None) pairs, that matches the path decides. Without
  one, arrays of at least MIN_SHARDED_SIZE numbers are split along the largest axis that fsdp
  divides.
  """
  if fsdp == 1:
    return None
  for pattern, axis in rules:
    if pattern.search(path):
      axis = None if axis is None or axis >= len(shape) else axis
      if axis is not None and shape[axis] % fsdp:
        raise UserError(
          f"sharding rule {pattern.pattern!r} splits axis {axis} of {path} {tuple(shape)}, "
          f"which fsdp {fsdp} does not divide: choose another axis or None"
        )
      return axis
  if math.prod(shape) < MIN_SHARDED_SIZE:
    return None
  first = 1 if _SCANNED.search(path) else 0  # never the layer axis: a scan slices it every step
  axes = [a for a in range(first, len(shape)) if shape[a] % fsdp == 0]
  return max(axes, key=lambda a: shape[a], default=None)


def map_local(fn, params):
  """Compiles `fn(params, batch)` → arrays [b, …] to a callable of NumPy batches [b, …].

  Each process runs it alone, over its own devices. The callable does not wait for its results, jax
  arrays.
  """
  local = JitParallel(jax.local_devices(), 1, ())
  params = local.put_state(params)
  run = jax.jit(local._on_mesh(fn), out_shardings=local._batch)
  return lambda batch: run(params, local.put_batch(batch))


def in_batches(run, batch, batch_size, devices=None):
  """Returns run(batch) for a batch of any length, computed in batches of one size.

  Args:
    run: a callable on dicts of arrays [b, …], as map_local returns them.
    batch: NumPy arrays [n, …].
    batch_size: rounded up to a multiple of `devices`. The last batch is filled up with rows that
      are dropped again.
    devices: how many devices split a batch; default: all of this process.

  Returns: NumPy arrays [n, …].
  """
  total = len(jax.tree.leaves(batch)[0])
  devices = devices or jax.local_device_count()
  size = -(-batch_size // devices) * devices
  parts = []
  for start in range(0, total, size):
    rows = np.arange(start, start + size) % total
    parts.append(jax.device_get(run(jax.tree.map(lambda x, r=rows: x[r], batch))))
  return jax.tree.map(lambda *x: np.concatenate(x)[:total], *parts)


def _with_own_buffers(x):
  """Returns a copy of a placed array, a buffer on each device, and deletes x."""
  shards = [jax.device_put(np.array(s.data), s.device) for s in x.addressable_shards]
  own = jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)
  x.delete()
  return own


def _place(x, sharding):
  """Returns a placed copy of a whole array, which is equal in all processes."""
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: np.array(x[index]))
