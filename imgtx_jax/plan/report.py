"""The text of a plan: its lines, what to change if it does not fit, and a table of several."""

from collections import defaultdict

import jax

from imgtx_jax.plan import gpus

_GIB = 2**30
_ROOM = 0.8  # of the memory, for the state and its gradients: the rest is activations
_MOST_FRACTION = 0.92  # of a GPU's memory, for JAX: CUDA and NCCL need some of their own
_PARTS = {
  "params": "parameters",
  "opt_state": "optimizer state",
  "ema": "average",
  "variables": "variables",
  "frozen": "frozen networks",
}
SWEEP_HEAD = (
  "| stage | batch | fsdp | memory a chip, GiB | of | utilisation | images/s | days |\n"
  "|---|---|---|---|---|---|---|---|"
)


def lines(plan, config):
  """Yields the lines of one Plan."""
  mode = f"jit, fsdp {plan.fsdp}"
  if plan.pmap:
    mode = "pmap (a replica a chip; planned as jit on a mesh that splits the batch only)"
  low = jax.config.jax_exec_time_optimization_effort < 0
  yield (
    f"{plan.stage} on {plan.topology}: {plan.devices} devices, {mode}, batch {plan.batch}, "
    f"{plan.dtype}; {plan.compile_seconds:.0f} s to compile{' at low effort' if low else ''}"
  )
  state = (f"{label} {_gib(plan.state_bytes[part])}" for part, label in _PARTS.items())
  yield f"  state a chip    {', '.join(state)}; {_gib(sum(plan.state_bytes.values()))} GiB in all"
  yield f"  memory a chip   {_memory(plan)}"
  repeated = plan.run_flops / plan.model_flops - 1
  yield (
    f"  products        {_tera(plan.model_flops / plan.devices)} TFLOP a step and chip, and "
    f"{repeated:.0%} more recomputed"
  )
  if plan.costs:
    yield from _costs(plan)
  if plan.seconds:
    yield from _speed(plan)
  for line in advice(plan, config):
    yield f"  change          {line}"


def _memory(plan):
  limit = f" of {_gib(plan.limit_bytes)}" if plan.limit_bytes else ""
  if not plan.fits:
    needed = f"needs {_gib(plan.peak_bytes)}" if plan.peak_bytes else "needs more than"
    return f"{needed}{limit} GiB: DOES NOT FIT"
  sizes = ", ".join(f"{k} {_gib(v)}" for k, v in plan.memory.items() if k != "peak")
  return f"{sizes}; at most {_gib(plan.memory['peak'])}{limit} GiB{': fits' if limit else ''}"


def _costs(plan):
  """Yields lines on what a step moves."""
  yield f"  memory traffic  {plan.costs.memory_bytes / 1e9:.3g} GB a step and chip"
  kinds = defaultdict(lambda: [0, 0.0, 0.0])
  for collective, times in plan.costs.collectives.items():
    row = kinds[collective.kind, len(collective.group)]
    row[0] += times
    row[1] += times * collective.sent()
    row[2] += plan.link_seconds.get(collective, 0.0)
  for (kind, size), (times, sent, seconds) in sorted(kinds.items(), key=lambda x: -x[1][1]):
    text = "" if kind == "collective-permute" else f" over {size}"
    taken = f", {1e3 * seconds:.3g} ms" if plan.chip else ""
    yield f"  {kind}{text}: {times} a step, {sent / 1e6:,.3g} MB sent by a chip{taken}"
  if plan.costs.unknown_loops:
    yield f"  {plan.costs.unknown_loops} loops of unknown length count once"


def _speed(plan):
  """Yields lines on time, by the chip's published rates."""
  parts = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in plan.seconds.items())
  least, most = plan.step_seconds
  yield f"  a step          {parts}: {1e3 * least:.3g} ms all at once, {1e3 * most:.3g} in turn"
  low, high = plan.utilisation
  yield (
    f"  utilisation     {low:.2f}–{high:.2f} of {plan.chip.name}'s peak, {plan.batch / most:,.0f}–"
    f"{plan.batch / least:,.0f} images/s; {plan.steps:,} steps take {_days(plan)} days"
  )


def _days(plan):
  least, most = (f"{plan.steps * s / 86400:.2g}" for s in plan.step_seconds)
  return least if least == most else f"{least}–{most}"


def advice(plan, config):
  """Returns lines on what to change so that it fits, or if it fits, to make it faster."""
  fits, room = plan.fits, _ROOM * plan.limit_bytes
  ways = []
  if plan.limit_bytes and plan.held:
    enough = min((k for k, held in plan.held.items() if held <= room), default=None)
    now = plan.held[1 if plan.pmap else plan.fsdp] if plan.fsdp in plan.held else 0
    if enough and enough > 1 and (plan.pmap or enough > plan.fsdp) and not (fits and now <= room):
      ways.append(
        f"state and gradients are {_gib(now)} GiB a chip: --config.parallel.mode=jit "
        f"--config.parallel.fsdp={enough} leaves {_gib(plan.held[enough])}"
      )
    elif fits and enough and enough < plan.fsdp and not plan.pmap:
      ways.append(
        f"state and gradients would also fit with --config.parallel.fsdp={enough} "
        f"({_gib(plan.held[enough])} GiB): fewer devices then share a layer"
      )
    elif not fits and not enough:
      most = max(plan.held)
      ways.append(
        f"state and gradients are {_gib(plan.held[most])} GiB a chip even with fsdp {most}: more "
        "chips, or chips with more memory"
      )
  if fits:
    return ways + _faster(plan)
  if plan.memory and plan.peak_bytes <= _MOST_FRACTION * getattr(plan.chip, "memory_bytes", 0):
    ways.append(
      f"XLA_CLIENT_MEM_FRACTION={_MOST_FRACTION:g} in the environment, here and in training: JAX "
      f"takes {gpus.memory_fraction():.0%} of a GPU's memory"
    )
  if config.remat != "full":
    ways.append(f"--config.remat=full keeps one activation a layer (it is {config.remat!r} now)")
  per_chip = plan.batch // plan.devices
  parts = 2 * config.pretrain.grad_accum_steps
  if plan.stage == "pretrain" and per_chip % parts == 0:
    ways.append(f"--config.pretrain.grad_accum_steps={parts} takes the batch in parts, one by one")
  if per_chip > 1:
    smaller = plan.devices * (per_chip // 2)
    ways.append(f"--config.{plan.stage}.batch_size={smaller}: {per_chip // 2} images a chip")
  return ways or ["more chips, or a smaller network: the batch is one image a chip already"]


def _faster(plan):
  if not plan.seconds:
    return []
  seconds = plan.seconds
  slowest = max(seconds, key=seconds.get)
  if slowest == "arithmetic":
    return []
  ratio = seconds[slowest] / seconds["arithmetic"]
  images = plan.batch / plan.devices
  ways = [
    f"{slowest} takes {ratio:.1f} times as long as arithmetic at {images:g} images a chip: larger "
    f"--config.{plan.stage}.batch_size, or fewer chips"
  ]
  if slowest == "communication" and plan.fsdp > 1:
    ways.append("another fsdp (--sweep): a whole side of the torus has twice the rate of a part")
  return ways


def sweep_row(plan):
  """Returns one line of the table of --sweep."""
  memory = _gib(plan.peak_bytes) if plan.peak_bytes else "?"
  cells = [
    plan.stage,
    plan.batch,
    plan.fsdp,
    memory,
    _gib(plan.limit_bytes) if plan.limit_bytes else "?",
  ]
  if not plan.fits:
    cells += ["does not fit", "", ""]
  elif plan.seconds:
    low, high = plan.utilisation
    least, most = plan.step_seconds
    cells += [f"{low:.2f}–{high:.2f}", f"{plan.batch / most:,.0f}–{plan.batch / least:,.0f}"]
    cells.append(_days(plan))
  else:
    cells += ["", "", ""]
  return f"| {' | '.join(map(str, cells))} |"


def failed_row(stage, batch, fsdp, error):
  """Returns the line of a size that could not be planned."""
  return f"| {stage} | {batch} | {fsdp} | {error} | | | | |"


def _gib(size):
  return f"{size / _GIB:.2g}" if size < 0.1 * _GIB else f"{size / _GIB:.2f}"


def _tera(count):
  return f"{count / 1e12:.3g}"
