"""The only training loop: input → step → log → evaluate → checkpoint. It never names a stage."""

import dataclasses
import functools
import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging
from clu import parameter_overview

from imgtx_jax import rng
from imgtx_jax.cli.command import Interrupted
from imgtx_jax.cli.progress import Display
from imgtx_jax.cli.stop_signals import StopSignals
from imgtx_jax.data import pipeline
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError
from imgtx_jax.io.image_grid import save_grid
from imgtx_jax.training import workdir
from imgtx_jax.training.best_checkpoint import Best
from imgtx_jax.training.checkpoint import Checkpoints
from imgtx_jax.training.collapse_monitor import RATE, Collapse, Guard
from imgtx_jax.training.evaluator_runner import EvaluatorRunner
from imgtx_jax.training.metric_writer import MetricLog
from imgtx_jax.training.recompilation import ArgumentWatch
from imgtx_jax.training.step_profile import StepProfile


@dataclasses.dataclass
class Counts:
  """Totals of all steps so far, for the log and the summary; part of every checkpoint.

  window: metrics since the last logged line, {name: [a value a step]}. seconds: since the stage's
  first start, time lost by kills left out. train_seconds: of the steps alone, without compilation.
  """

  window: dict = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  train_seconds: float = 0.0
  trained_images: int = 0
  compile_seconds: float = 0.0

  @property
  def images_per_second(self):
    """Returns the training rate, with evaluations and saves left out."""
    return self.trained_images / max(self.train_seconds, 1e-9)


class Trainer:
  """Trains one stage in its directory: from the start, or on from its last checkpoint.

  Args:
    stage: a built stage; stages/base.py has the contract.
    config: the experiment's.
    directory: the stage's, within the work directory.
    restored: results of the earlier stages, {name: NumPy trees}.
    inputs: the source of its batches: the training images, or codes of them.
    training, held_out: the sources of images.
    parallel: a sharding.Parallel.
    best: the Best, by whose figure a checkpoint is kept beside the last ones.
    round_number: number of the round, from 1. Each round has random draws and batches of its own;
      evaluations and pictures draw the same in all rounds.
    profile_steps: the range of steps that are profiled, or None.
  """

  def __init__(
    self,
    stage,
    *,
    config,
    directory,
    restored,
    inputs,
    training,
    held_out,
    parallel,
    best=None,
    round_number=1,
    profile_steps=None,
  ):
    self.stage, self.config, self.parallel = stage, config, parallel
    self.directory = Path(directory)
    self.title = self.directory.name
    self.restored, self.inputs = restored, inputs
    self.training, self.held_out, self.companions = training, held_out, stage.companions()
    self.round_number, self.best = round_number, best or Best()
    self.seed = rng.round_seed(config.seed, round_number)
    self.root, self.shown = rng.root_key(self.seed), rng.root_key(config.seed)
    self.step_key = parallel.put_key(self.root)
    self.guard = Guard(config.guard, stage.guard)
    keep = dict(keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
    self.checkpoints = Checkpoints(self.directory / "checkpoints", **keep)
    self.log = MetricLog(self.directory, writes=processes.is_first())
    self.profile = StepProfile(profile_steps, self.directory)
    self.step_fn, self.arguments = parallel.compile_step(stage.step), ArgumentWatch()
    self.refresh_fn = parallel.compile_refresh(stage.refresh) if stage.refresh else None
    self.pictures_fn = parallel.compile_local(stage.pictures)
    self.evaluation = EvaluatorRunner(stage, config, held_out, parallel, self.companions)
    self.pictured = False  # whether this process has drawn the pictures of the last step
    self.shapes = jax.eval_shape(self._init, self.root, restored)
    self.parameters = parameter_overview.get_parameter_overview(
      self.shapes.params, include_stats=False
    )
    self._start(parallel.put_state({"frozen": stage.frozen(restored)})["frozen"])
    self.log.truncate(self.start, falls=len(self.guard.collapses))
    self.checkpoints.reserve(parallel.abstract(self.shapes))

  # -- Where it starts, and where it starts again --------------------------------------------------

  def _init(self, key, restored):
    """The stage's first state, without the frozen networks: those are placed as they are."""
    size = self.config.data.image_size
    shape = (self.stage.batch_size, size, size, 3)
    return self.stage.init(key, shape, restored).replace(frozen={})

  def _start(self, frozen, resume=True, step=None):
    """Places the state of the newest intact checkpoint, and sets all else to what it was there; or
    the first state, where there is none.

    frozen: the placed networks that the stage does not train. resume: False passes over all
    checkpoints; step: those after it.
    """
    data, state, meta = self.config.data, None, None
    self.iterator = pipeline.train_iterator(
      self.inputs,
      batch_size=self.stage.batch_size,
      image_size=data.image_size,
      crop=data.crop,
      min_scale=data.min_scale,
      max_scale=data.max_scale,
      seed=self.seed,
      threads=data.threads,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      companions=self.companions,
    )
    if resume:
      like = self.parallel.abstract(self.shapes)
      state, meta = self.checkpoints.restore(
        like, step=step, iterator=self.iterator, missing_ok=True
      )
    if meta is None:
      state = self.parallel.init_state(self._init, self.root, self.restored)
      self.start, self.counts = 0, Counts()
    else:
      state = self.parallel.put_restored(state)
      self.start = meta["step"]
      self.counts = Counts(**{f.name: meta[f.name] for f in dataclasses.fields(Counts)})
    self.state = state.replace(frozen=frozen)
    self.guard.restore(meta)
    best = meta and meta["best"]
    if best and not self.checkpoints.has(best["step"]):
      logging.warning("%s: the best checkpoint, step %d, is gone", self.title, best["step"])
      best = None
    self.best.restore(best)

  def _fall_back(self, collapse):
    """Goes back, once and if the config allows it, to the last good checkpoint at lower learning
    rates; else UserError. What it fell back from stays in the log, marked."""
    line = f"{self.title}: {collapse} at step {self.done}"
    if not self.guard.may_retry:
      self._close()
      raise UserError(f"{line}; {self.guard.advice()}") from collapse
    collapses = [*self.guard.collapses, f"{line}; back to {self.guard.back_to()}"]
    self.display.line(f"{collapses[-1]}, and on at {RATE:g} of the learning rates")
    self.checkpoints.wait()
    good = self.guard.good
    frozen, self.state = self.state.frozen, None  # two states might not fit
    self._start(frozen, resume=good is not None, step=good)
    self.state = self.state.replace(rate=self.state.rate * RATE)
    self.guard.collapses = collapses
    self.log.set_aside(self.start, fall=len(collapses))

  # -- Training ------------------------------------------------------------------------------------

  def run(self):
    """Trains to the end; raises Interrupted after saving when a signal asks to stop."""
    total = self.stage.steps
    self.began = time.monotonic() - self.counts.seconds
    with StopSignals() as stop, Display(self.title, total, self.start) as self.display:
      if self.start:
        self.display.line(f"{self.title}: going on from step {self.start}")
      while collapse := self._train(stop):
        self._fall_back(collapse)
      self._finish()
      if stop.number:
        raise Interrupted(
          f"{self.title}: finished, and stopped by {signal.Signals(stop.number).name}; the same "
          "command goes on from there",
          stop.number,
        )

  def _train(self, stop):
    """Runs the steps from self.start to the last; returns the Collapse that ended them, or None."""
    try:
      for step in range(self.start, self.stage.steps):
        self._step(step, stop)
    except Collapse as collapse:
      return collapse.with_traceback(None)  # whose frames hold on to the state
    finally:
      self.profile.stop()
    return None

  def _step(self, step, stop):
    """One step, and whatever is due after it."""
    if step == self.start:
      self.pending, self.mark = [], time.monotonic()
    if self.refresh_fn and (step == 0 or _due(step, self.stage.refresh_steps)):
      self._collect()
      self.state = self.refresh_fn(self.state, self.step_key)
      self.mark = time.monotonic()
    with self.profile.step(step, lambda: jax.block_until_ready(self.state)):
      metrics = self._advance(step)
    self.pending.append(metrics)
    self.done = done = step + 1
    if step == self.start:
      jax.block_until_ready(metrics)
      seconds = time.monotonic() - self.mark
      self.counts.compile_seconds += seconds
      self.display.line(f"{self.title}: first step after {seconds:.0f} s of compiling")
      self._collect(timed=False)
    config, last = self.config, done == self.stage.steps
    due = {
      "log": last or _due(done, config.log_steps),
      # At the end all is evaluated on more images; the best is chosen by as many as before.
      "evaluate": bool(self.best.metric) if last else _due(done, config.evaluate_steps),
      "pictures": last or _due(done, config.picture_steps),
      "save": last or _due(done, config.checkpoint_steps),
    }
    if stop.agreed() or any(due.values()):
      self._collect()
      self._attend(done, due, stop)
      self.mark = time.monotonic()

  def _advance(self, step):
    """The step itself, on the next batch: sets the state, returns the metrics."""
    batch, began = self.parallel.put_batch(next(self.iterator)), time.monotonic()
    changes = self.arguments.changes({"state": self.state, "batch": batch})
    self.state, metrics = self.step_fn(self.state, batch, self.step_key)
    if changes:
      seconds = time.monotonic() - began
      self.display.line(f"{self.title}: compiled again at step {step} ({seconds:.0f} s): {changes}")
    return metrics

  def _collect(self, timed=True):
    """Waits for the steps since the last call and adds their metrics to the window."""
    for metrics in jax.device_get(self.pending):
      for name, value in metrics.items():
        self.counts.window.setdefault(name, []).append(float(value))
    now = time.monotonic()
    if timed and self.pending:
      self.counts.train_seconds += now - self.mark
      self.counts.trained_images += len(self.pending) * self.stage.batch_size
    self.pending, self.mark = [], now
    self.guard.check_window(self.counts.window)

  def _attend(self, done, due, stop):
    """Does what is due after `done` steps, in the order that a resumed run would repeat."""
    if due["log"]:
      means = {name: float(np.mean(v)) for name, v in sorted(self.counts.window.items())}
      self.counts.window = {}
      self._log(done, {f"train/{name}": mean for name, mean in means.items()})
      rate = self.counts.images_per_second
      shown = {name: means[name] for name in _headline(means)}
      self.display.update(done, rate, self.stage.batch_size / max(rate, 1e-9), shown)
      self.guard.look(done, means)
    if due["evaluate"]:
      figures = self._evaluate(done, limit=self.config.evaluate_images)
      if not self.guard.alarms and self.best.look(done, figures):
        due["save"] = True
    if due["pictures"]:
      self._picture(done, self.pictures_fn)
    # While there is an alarm nothing is saved that one would want to fall back to.
    if (due["save"] and not self.guard.alarms) or done == self.stage.steps or stop.number:
      self._save(done, wait=bool(stop.number))
    if stop.number and done < self.stage.steps:
      self._close()
      raise Interrupted(
        f"{self.title}: stopped by {signal.Signals(stop.number).name} and saved at step {done} of "
        f"{self.stage.steps}; the same command goes on from there",
        stop.number,
      )

  # -- What is due now and then --------------------------------------------------------------------

  def _log(self, done, figures):
    self.log.write(done, time.monotonic() - self.began, figures)

  def _evaluate(self, done, limit):
    """Figures on at most `limit` held-out images, logged."""
    figures = self.evaluation.figures(self.state, self.shown, limit)
    self._log(done, figures)
    text = "  ".join(f"{key.split('/')[-1]} {value:.4g}" for key, value in figures.items())
    self.display.line(f"{self.title}  {done}/{self.stage.steps}  held out: {text}")
    return figures

  def _picture(self, done, draw):
    """Saves the grids that draw(state, batch, key) gives for the first held-out images."""
    count = self.config.pictures
    batches = pipeline.eval_batches(
      self.held_out,
      batch_size=count,
      image_size=self.config.data.image_size,
      limit=count,
      threads=self.config.data.threads,
      companions=self.companions,
    )
    grids = draw(self.state, next(batches), self.shown)
    self.pictured = True
    for name, images in grids.items() if processes.is_first() else ():
      save_grid(
        images.reshape(-1, *images.shape[2:]),
        self.directory / "pictures" / f"{name}-{done:07d}.png",
        columns=images.shape[1],
        scale=max(1, 64 // images.shape[2]),
        captions=self.stage.captions.get(name),
      )

  def _save(self, done, wait=False):
    """Saves the state in the background; `wait`: until it is on the disk."""
    self.guard.check_state(self.state)
    self.counts.seconds = time.monotonic() - self.began
    meta = {"step": done, "best": self.best.meta()}
    meta |= self.guard.meta(done) | dataclasses.asdict(self.counts)
    state = self.parallel.get_state(self.state.replace(frozen={}))
    self.checkpoints.save(
      done, state, iterator=self.iterator, meta=meta, best=self.best.step, wait=wait
    )

  def _close(self):
    self.checkpoints.close()
    self.log.close()

  # -- The end -------------------------------------------------------------------------------------

  def _finish(self):
    """Figures on held-out images, baselines, and the summary, which says that it is done."""
    total = self.stage.steps
    figures = self._evaluate(total, limit=self.config.final_evaluate_images)
    if not self.pictured:  # killed after the last step
      self._picture(total, self.pictures_fn)
    if self.stage.final_pictures:
      self._picture(total, self.parallel.compile_local(self.stage.final_pictures))
    if processes.is_first():  # who alone writes the summary
      readers = [functools.partial(self._images, x) for x in (self.training, self.held_out)]
      figures |= {f"baseline/{k}": v for k, v in self.stage.baselines(*readers).items()}
    self._save(total)
    seconds = time.monotonic() - self.began
    self._close()
    # Several processes may have met the same unreadable images.
    names = json.dumps(pipeline.corrupt_images(self.inputs)["names"])
    corrupt = {name for part in processes.gather(names.encode()) for name in json.loads(part)}
    summary = {
      "stage": self.stage.name,
      "round": self.round_number,
      "steps": total,
      "seconds": seconds,
      "compile_seconds": self.counts.compile_seconds,
      "images_per_second": self.counts.images_per_second,
      "peak_memory_bytes": processes.peak_memory_bytes(),
      "corrupt_images": len(corrupt),
      "collapses": self.guard.collapses,
      "best": self.best.meta(),
      "figures": figures,
    }
    workdir.write_summary(self.directory, summary)

  def _images(self, source, limit):
    """Up to `limit` images of a source, spread evenly over it, uint8 [n, H, W, 3]."""
    batches = pipeline.eval_batches(
      source,
      batch_size=256,
      image_size=self.config.data.image_size,
      limit=limit,
      threads=self.config.data.threads,
    )
    return np.concatenate([b["image"][b["mask"] > 0] for b in batches])


def _due(step, every):
  """Whether something that is done every `every` steps is due after `step`; never if that is 0."""
  return every > 0 and step % every == 0


def _headline(means):
  """The names of the metrics that the progress line shows."""
  order = ("loss", "bits_per_code", "reconstruction", "logit_margin")
  return [name for name in order if name in means][:3]
