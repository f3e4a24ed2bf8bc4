"""One device, pmap, jit and fsdp compute the same; states are safe to donate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imgtx_jax.distributed.collectives import all_gather, example_index, pmean
from imgtx_jax.distributed.sharding import make_parallel, map_local
from imgtx_jax.errors import UserError
from imgtx_jax.training.train_state import TrainState, update_ema

WIDTH, LAYERS, BATCH = 16, 2, 8
TX = optax.adam(1e-2)


@functools.cache
def init_state():
  """Two scanned layers and a head; ema shares its buffers with params, as an init may do."""
  rng = np.random.default_rng(0)
  net = {
    "layers": {"kernel": jnp.asarray(rng.normal(size=(LAYERS, WIDTH, WIDTH)) / 4, jnp.float32)},
    "head": jnp.asarray(rng.normal(size=(WIDTH, 4)), jnp.float32),
  }
  params = {"net": net}
  frozen = {"target": jnp.linspace(-1.0, 1.0, WIDTH * 4).reshape(WIDTH, 4)}
  opt_state = {"net": TX.init(net)}
  variables = {"usage": jnp.ones(4)}
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, params, variables, frozen)


def per_example_noise(rng, step, n, axis):
  keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(example_index(n, axis) + 1000 * step)
  return jax.vmap(lambda k: jax.random.normal(k, (WIDTH,)))(keys)


def forward(params, x):
  layer = lambda x, kernel: (jnp.tanh(x @ kernel), None)  # noqa: E731
  x, _ = jax.lax.scan(layer, x, params["layers"]["kernel"])
  return x @ params["head"]


def step(state, batch, rng, *, axis):
  """Regression under noise, plus the entropy of the mean softmax: nonlinear in the batch."""
  noise = per_example_noise(rng, state.step, len(batch["image"]), axis)
  x = batch["image"] + 0.1 * noise

  def loss_fn(net):
    y = forward(net, x)
    usage = all_gather(jax.nn.softmax(y), axis).mean(0)
    entropy = -jnp.sum(usage * jnp.log(usage))
    return jnp.mean((y - x @ state.frozen["target"]) ** 2) - 0.5 * entropy, usage

  (loss, usage), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params["net"])
  grads, loss = pmean((grads, loss), axis)
  updates, opt_state = TX.update(grads, state.opt_state["net"], state.params["net"])
  params = {"net": optax.apply_updates(state.params["net"], updates)}
  ema = update_ema(state.ema, params, 0.9, state.step)
  state = state.replace(
    step=state.step + 1, params=params, opt_state={"net": opt_state}, ema=ema,
    variables={"usage": usage},
  )  # fmt: skip
  return state, {"loss": loss, "usage": usage[0]}


def batches(n):
  rng = np.random.default_rng(0)
  return [{"image": rng.normal(size=(BATCH, WIDTH)).astype(np.float32)} for _ in range(n)]


@functools.cache
def make(name):
  match name:
    case "one":
      return make_parallel("jit", devices=jax.devices()[:1])
    case "pmap-one":
      return make_parallel("pmap", devices=jax.devices()[:1])
    case "fsdp":
      rules = [("head", 0), ("layers/kernel", 2)]
      return make_parallel("jit", fsdp=2, rules=rules)
    case _:
      return make_parallel(name)


@functools.cache
def compiled(name):
  return make(name).compile_step(step)


@functools.cache
def key(seed):
  return jax.random.key(seed)


def train(name):
  parallel, run = make(name), compiled(name)
  state, placed = parallel.put_state(init_state()), parallel.put_key(key(1))
  metrics = []
  for batch in batches(4):
    with jax.transfer_guard("disallow"):
      state, last = run(state, parallel.put_batch(batch), placed)
    metrics.append({k: float(v) for k, v in last.items()})
  return state, metrics


@pytest.fixture(scope="module")
def reference():
  state, metrics = train("one")
  return jax.tree.map(np.array, make("one").get_state(state)), metrics


def assert_close(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("name", ["pmap-one", "pmap", "jit", "fsdp"])
def test_modes_agree(name, reference):
  state, metrics = train(name)
  assert_close(jax.tree.map(np.asarray, make(name).get_state(state)), reference[0])
  assert_close(metrics, reference[1])
  losses = [m["loss"] for m in metrics]
  assert losses[-1] < losses[0]


def test_local_statistics_would_differ(reference):
  """The comparison above can fail: without all_gather the entropy is another one."""
  parallel = make("pmap")

  def local(state, batch, rng, *, axis):
    y = forward(state.params["net"], batch["image"])
    usage = jax.nn.softmax(y).mean(0)
    return state, {"entropy": pmean(-jnp.sum(usage * jnp.log(usage)), axis)}

  state = parallel.put_state(init_state())
  batch = batches(1)[0]
  state, metrics = parallel.compile_step(local)(state, parallel.put_batch(batch), key(1))
  usage = jax.nn.softmax(forward(init_state().params["net"], batch["image"])).mean(0)
  assert abs(float(metrics["entropy"]) + float(jnp.sum(usage * jnp.log(usage)))) > 1e-2


@pytest.mark.parametrize("name", ["pmap-one", "pmap", "one", "fsdp"])
def test_compiles_once_and_donates(name):
  parallel, run = make(name), compiled(name)
  batch = parallel.put_batch(batches(1)[0])
  first = parallel.put_state(init_state())
  again = parallel.put_state(first) if name in ("one", "fsdp") else first
  placed = parallel.put_key(key(1))
  state, _ = run(again, batch, placed)
  assert all(x.is_deleted() for x in jax.tree.leaves((again.params, again.opt_state)))
  events = []
  listen = lambda event, *_, **__: events.append(event)  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for _ in range(2):
      state, metrics = run(state, batch, placed)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not [e for e in events if "compile" in e]
  assert np.isfinite(float(metrics["loss"]))
  if again is not first:  # putting copied
    assert not any(x.is_deleted() for x in jax.tree.leaves(first))


@pytest.mark.parametrize("name", ["one", "pmap", "fsdp"])
def test_put_state_copies_host_arrays(name):
  parallel = make(name)
  host = jax.tree.map(np.array, init_state())
  before = jax.tree.map(np.copy, host)
  state = parallel.put_state(host)
  replica = parallel.get_state(state) if name == "pmap" else None
  kept = jax.tree.map(np.copy, replica)
  for batch in batches(2):
    state, _ = compiled(name)(state, parallel.put_batch(batch), key(1))
  jax.tree.map(np.testing.assert_array_equal, host, before)
  jax.tree.map(np.testing.assert_array_equal, replica, kept)


def test_restored_replicas_do_not_share_a_buffer():
  parallel = make("jit")
  x = np.empty(2**16 + 16, np.float32)
  x = x[-x.ctypes.data % 64 // 4 :][: 2**16]  # so aligned, every CPU device takes it as it is
  x[:] = np.arange(2**16)
  replicas = [jax.device_put(x, device) for device in parallel.devices]
  shared = jax.make_array_from_single_device_arrays(x.shape, parallel._replicated, replicas)
  own = parallel.put_restored({"w": shared})["w"]
  assert len({s.data.unsafe_buffer_pointer() for s in own.addressable_shards}) == 4
  np.testing.assert_array_equal(own, np.arange(2**16))
  assert shared.is_deleted() and own.sharding == parallel._replicated


@pytest.mark.parametrize("name", ["one", "pmap", "fsdp"])
def test_sums_refresh_and_local(name):
  parallel = make(name)
  state = parallel.put_state(init_state())
  batch = {**batches(1)[0], "mask": np.array([1] * 6 + [0] * 2, np.float32)}
  rng = key(3)

  def sums(state, batch, rng, *, axis):
    noise = per_example_noise(rng, state.step, len(batch["image"]), axis)
    y = forward(state.params["net"], batch["image"] + noise).sum(-1)
    return {"sum": jnp.sum(y * batch["mask"]), "count": jnp.sum(batch["mask"])}

  def refresh(state, rng, *, axis):
    drawn = jax.random.normal(jax.random.fold_in(rng, state.step), (4,))
    return state.replace(variables={"usage": drawn})

  def local(state, batch, rng):
    return {"y": forward(state.params["net"], batch["image"])}

  expected = sums(init_state(), batch, rng, axis=None)
  assert_close(parallel.compile_sums(sums)(state, parallel.put_batch(batch), rng), expected)
  odd = {"image": batch["image"][:3]}  # fewer than devices
  y = parallel.compile_local(local)(state, odd, rng)["y"]
  assert isinstance(y, np.ndarray)
  assert_close(y, forward(init_state().params["net"], odd["image"]))
  state = parallel.compile_refresh(refresh)(state, rng)
  drawn = refresh(init_state(), rng, axis=None).variables["usage"]
  assert_close(np.asarray(parallel.get_state(state).variables["usage"]), drawn)


def test_fsdp_shardings():
  parallel = make_parallel("jit", fsdp=4, rules=[("codebook", None), ("small", 0)])
  shapes = {
    "params": {
      "gpt": {
        "layers": {"kernel": (512, 128, 256), "odd": (65536, 3)},
        "head": (512, 256),
        "players": (512, 256),
        "norm": (256,),
      },
      "codebook": (4096, 256),
      "small": (8, 2),
    },
    "step": (),
  }
  shapes = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
  )
  split = jax.tree.map(lambda s: list(s.spec), parallel.shardings(shapes))
  gpt = split["params"]["gpt"]
  assert gpt["layers"] == {"kernel": [None, None, "fsdp"], "odd": []}
  assert gpt["head"] == gpt["players"] == ["fsdp"]
  assert gpt["norm"] == split["step"] == split["params"]["codebook"] == []
  assert split["params"]["small"] == ["fsdp"]
  abstract = parallel.abstract(shapes)
  assert list(abstract["params"]["small"].sharding.spec) == ["fsdp"]


def test_fsdp_splits_optimizer_and_ema_like_params():
  parallel = make("fsdp")
  state = parallel.put_state(init_state())
  adam = state.opt_state["net"][0]
  for tree in (state.params["net"], state.ema["net"], adam.mu, adam.nu):
    assert tree["head"].addressable_shards[0].data.shape == (WIDTH // 2, 4)
    assert tree["layers"]["kernel"].addressable_shards[0].data.shape == (LAYERS, WIDTH, WIDTH // 2)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: make_parallel("xmap"), "'xmap'"),
    (lambda: make_parallel("pmap", fsdp=2), "mode jit"),
    (lambda: make_parallel("jit", fsdp=3), "fsdp 3"),
    (lambda: make("pmap").put_batch({"image": np.zeros((6, 2))}), "batch of 6"),
    (lambda: make("jit").put_batch({"image": np.zeros((6, 2))}), "4 divides"),
    (
      lambda: make_parallel("jit", fsdp=4, rules=[("w", 0)]).shardings({"w": np.zeros((6, 2))}),
      "rule 'w' splits axis 0",
    ),
  ],
)
def test_bad_input(call, words):
  with pytest.raises(UserError, match=words):
    call()


def test_a_local_map_splits_its_examples_over_the_devices():
  params = jax.tree.map(np.asarray, init_state().params["net"])
  run = map_local(forward, params)
  (batch,) = batches(1)
  out = run(batch["image"])
  assert len(out.sharding.device_set) == jax.local_device_count()
  np.testing.assert_allclose(out, forward(params, batch["image"]), atol=1e-5)
  with pytest.raises(UserError, match="batch of 6 does not split over its 4 devices"):
    run(batch["image"][:6])
