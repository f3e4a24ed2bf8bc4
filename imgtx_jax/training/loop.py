"""The only training loop: input → step → log → evaluate → checkpoint. It never names a stage."""

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

BASELINE_IMAGES = 8192  # of a source, for what a stage measures at its end


class Trainer:
  """Trains one stage in its directory: from the start, or on from its last checkpoint.

  inputs: the source that its batches are of, the training images or codes of them. best: the Best,
  which says by which figure a checkpoint is kept beside the last ones. round_number: batches and
  draws of a later round are not those of an earlier one again; evaluations and pictures draw the
  same in all rounds.
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
  ):
    self.stage, self.config, self.parallel = stage, config, parallel
    self.directory = Path(directory)
    self.title = self.directory.name
    self.inputs, self.training, self.held_out = inputs, training, held_out
    self.restored = restored
    self.companions = stage.companions()
    self.round_number, self.best = round_number, best or Best()
    self.seed = rng.round_seed(config.seed, round_number)
    self.root, self.shown = jax.random.key(self.seed), jax.random.key(config.seed)
    self.guard = Guard(config.guard, config.guard_lines, stage.guard)
    keep = dict(keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
    self.checkpoints = Checkpoints(self.directory / "checkpoints", **keep)
    self.log = MetricLog(self.directory, writes=processes.is_first())
    self.step_fn = parallel.compile_step(stage.step)
    self.refresh_fn = parallel.compile_refresh(stage.refresh) if stage.refresh else None
    self.pictures_fn = parallel.compile_local(stage.pictures)
    self.evaluation = EvaluatorRunner(stage, config, held_out, parallel, self.companions)
    self._start()

  def _start(self, collapses=()):
    """Initial state, or the last intact checkpoint's, with the position in the data and the
    metrics of the steps since the last logged line.

    collapses: a line on each collapse so far, if there was one just now: then from the last
    checkpoint without an alarm, with its learning rates times RATE.
    """
    config, back = self.config, bool(collapses)
    self.iterator = pipeline.train_iterator(
      self.inputs,
      batch_size=self.stage.batch_size,
      image_size=config.data.image_size,
      crop=config.data.crop,
      min_scale=config.data.min_scale,
      max_scale=config.data.max_scale,
      seed=self.seed,
      threads=config.data.threads,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      companions=self.companions,
    )
    size = self.config.data.image_size
    shape = (self.stage.batch_size, size, size, 3)
    state = self.stage.init(self.root, shape, self.restored)
    self.parameters = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    # Metrics since the last line of the log, one list a name: what a line averages.
    self.window, self.seconds, self.start = {}, 0.0, 0
    self.pictured = False
    self.train_seconds, self.trained_images, self.compile_seconds = 0.0, 0, 0.0
    meta = None
    if self.guard.good is not None if back else self.checkpoints.latest() is not None:
      step = self.guard.good if back else None
      state, meta = self.checkpoints.restore(state, step=step, iterator=self.iterator)
      self.start = int(state.step)
      self.window, self.seconds = meta["window"], meta["seconds"]
      self.train_seconds = meta["train_seconds"]
      self.trained_images = meta["trained_images"]
      self.compile_seconds = meta["compile_seconds"]
    self.guard.restore(meta)
    rate = 1.0
    if back:
      self.guard.collapses, rate = list(collapses), RATE
    self._restore_best(meta and meta.get("best"))
    if back:
      self.log.set_aside(self.start, fall=len(collapses))
    else:
      self.log.truncate(self.start, falls=len(self.guard.collapses))
    self.state = self.parallel.put_state(state.replace(rate=np.float32(state.rate * rate)))
    self.checkpoints.reserve(self.parallel.abstract(state.replace(frozen={})))

  def _restore_best(self, meta):
    """Which checkpoint was the best so far; none where it is no longer there."""
    if meta and not self.checkpoints.has(meta["step"]):
      logging.warning("%s: the best checkpoint, step %d, is gone", self.title, meta["step"])
      meta = None
    self.best.restore(meta)

  def run(self):
    """Trains to the end; raises Interrupted after saving when a signal asks to stop."""
    total = self.stage.steps
    began = time.monotonic() - self.seconds
    self.clock = lambda: time.monotonic() - began
    with StopSignals() as stop, Display(self.title, total, self.start) as self.display:
      if self.start:
        self.display.line(f"{self.title}: going on from step {self.start}")
      while True:
        try:
          self._train(stop)
          break
        except Collapse as collapse:
          self._fall_back(collapse)
      self._finish(total)
      if stop.number:
        raise Interrupted(
          f"{self.title}: finished, and stopped by {signal.Signals(stop.number).name}; the same "
          "command goes on from there",
          stop.number,
        )

  def _train(self, stop):
    """The steps from self.start to the last; raises Collapse."""
    total = self.stage.steps
    pending, mark = [], time.monotonic()
    for step in range(self.start, total):
      self.done = step + 1
      if self.refresh_fn and (step == 0 or _due(step, self.stage.refresh_steps)):
        self._collect(pending, mark)
        self.state = self.refresh_fn(self.state, self.root)
        pending, mark = [], time.monotonic()
      batch = self.parallel.put_batch(next(self.iterator))
      self.state, metrics = self.step_fn(self.state, batch, self.root)
      pending.append(metrics)
      done = step + 1
      if step == self.start:
        jax.block_until_ready(metrics)
        self.compile_seconds += time.monotonic() - mark
        self.display.line(
          f"{self.title}: first step after {time.monotonic() - mark:.0f} s of compiling"
        )
        mark = time.monotonic()
        self._collect(pending, None)
        pending = []
      wants = {
        "log": _due(done, self.config.log_steps) or done == total,
        # At the end all is evaluated on all images; the best is chosen by as many as before.
        "evaluate": bool(self.best.metric)
        if done == total
        else _due(done, self.config.evaluate_steps),
        "pictures": _due(done, self.config.picture_steps) or done == total,
        "save": _due(done, self.config.checkpoint_steps) or done == total,
      }
      if stop.agreed() or any(wants.values()):
        self._collect(pending, mark)
        self._attend(done, wants, stop)
        pending, mark = [], time.monotonic()

  def _fall_back(self, collapse):
    """Once, and if the config says so, back to the last good checkpoint with lower rates; else
    UserError. What it fell back from stays in the meta of the checkpoints to come."""
    line = f"{self.title}: {collapse} at step {self.done}"
    if not self.guard.may_retry:
      self._close()
      raise UserError(f"{line}; {self.guard.advice()}") from collapse
    collapses = [*self.guard.collapses, f"{line}; back to {self.guard.back_to()}"]
    self.display.line(f"{collapses[-1]}, and on at {RATE:g} of the learning rates")
    self.checkpoints.wait()
    self._start(collapses)

  def _collect(self, pending, mark):
    """Waits for the pending steps' metrics and adds them to the window, timing them if asked."""
    for metrics in jax.device_get(pending):
      for name, value in metrics.items():
        self.window.setdefault(name, []).append(float(value))
    if mark is not None and pending:
      self.train_seconds += time.monotonic() - mark
      self.trained_images += len(pending) * self.stage.batch_size
    self.guard.check_window(self.window)

  def _attend(self, done, wants, stop):
    """What is due after `done` steps, in the order that a resumed run would repeat."""
    if wants["log"]:
      means = {f"train/{name}": float(np.mean(v)) for name, v in sorted(self.window.items())}
      self.window = {}
      self.log.write(done, self.clock(), means)
      rate = self.trained_images / max(self.train_seconds, 1e-9)
      shown = {n: means[n] for n in _headline(means)}
      self.display.update(done, rate, self.stage.batch_size / max(rate, 1e-9), shown)
      self.guard.look(done, {name.removeprefix("train/"): mean for name, mean in means.items()})
    if wants["evaluate"]:
      figures = self._evaluate(done, limit=self.config.evaluate_images)
      if not self.guard.alarms and self.best.look(done, figures):
        wants["save"] = True
    if wants["pictures"]:
      self._picture(done)
    # While there is an alarm nothing is saved that one would want to fall back to.
    if (wants["save"] and not self.guard.alarms) or done == self.stage.steps or stop.number:
      self._save(done, wait=bool(stop.number))
    if stop.number and done < self.stage.steps:
      self._close()
      raise Interrupted(
        f"{self.title}: stopped by {signal.Signals(stop.number).name} and saved at step {done} of "
        f"{self.stage.steps}; the same command goes on from there",
        stop.number,
      )

  def _evaluate(self, done, limit=None):
    """Figures on held-out images, logged; limit None takes all of them."""
    figures = self.evaluation.figures(self.state, self.shown, limit)
    self.log.write(done, self.clock(), figures)
    text = "  ".join(f"{key.split('/')[-1]} {value:.4g}" for key, value in figures.items())
    self.display.line(f"{self.title}  {done}/{self.stage.steps}  held out: {text}")
    return figures

  def _picture(self, done, draw=None):
    count = self.config.pictures
    batch = next(
      pipeline.eval_batches(
        self.held_out,
        batch_size=count,
        image_size=self.config.data.image_size,
        limit=count,
        threads=self.config.data.threads,
        companions=self.companions,
      )
    )
    grids = (draw or self.pictures_fn)(self.state, batch, self.shown)
    self.pictured = True
    if processes.is_first():
      for name, images in grids.items():
        path = self.directory / "pictures" / f"{name}-{done:07d}.png"
        save_grid(
          images.reshape(-1, *images.shape[2:]),
          path,
          columns=images.shape[1],
          scale=max(1, 64 // images.shape[2]),
          captions=self.stage.captions.get(name),
        )

  def _save(self, done, wait=False):
    self.guard.check_state(self.state)
    meta = self.guard.meta(done) | {
      "window": self.window,
      "seconds": self.clock(),
      "train_seconds": self.train_seconds,
      "trained_images": self.trained_images,
      "compile_seconds": self.compile_seconds,
      "best": self.best.meta(),
    }
    replica = self.parallel.get_state(self.state.replace(frozen={}))
    self.checkpoints.save(
      done, replica, iterator=self.iterator, meta=meta, best=self.best.step, wait=wait
    )

  def _finish(self, total):
    """Final figures on all held-out images, baselines, and the summary: the stage is done."""
    figures = self._evaluate(total)
    if not self.pictured:  # killed after the last step
      self._picture(total)
    if self.stage.final_pictures:
      self._picture(total, self.parallel.compile_local(self.stage.final_pictures))
    training, held_out = self._images(self.training), self._images(self.held_out)
    figures |= {f"baseline/{k}": v for k, v in self.stage.baselines(training, held_out).items()}
    self._save(total)
    seconds = self.clock()
    self._close()
    # Of the images that each process has read, all of which may meet the same ones.
    names = json.dumps(pipeline.corrupt_images(self.inputs)["names"])
    corrupt = {name for part in processes.gather(names.encode()) for name in json.loads(part)}
    summary = {
      "stage": self.stage.name,
      "round": self.round_number,
      "steps": total,
      "seconds": seconds,
      "compile_seconds": self.compile_seconds,
      "images_per_second": self.trained_images / max(self.train_seconds, 1e-9),
      "peak_memory_bytes": processes.peak_memory_bytes(),
      "corrupt_images": len(corrupt),
      "collapses": self.guard.collapses,
      "best": self.best.meta(),
      "figures": figures,
    }
    workdir.write_summary(self.directory, summary)

  def _images(self, source):
    """Up to BASELINE_IMAGES of a source, uint8 [n, H, W, 3]."""
    batches = pipeline.eval_batches(
      source,
      batch_size=256,
      image_size=self.config.data.image_size,
      limit=BASELINE_IMAGES,
      threads=self.config.data.threads,
    )
    return np.concatenate([b["image"][b["mask"] > 0] for b in batches])

  def _close(self):
    self.checkpoints.close()
    self.log.close()


def _due(step, every):
  """Whether something that is done every so many steps is; 0 is never."""
  return every > 0 and step % every == 0


def _headline(means):
  """The metrics that the progress line shows."""
  order = ("train/loss", "train/bits_per_code", "train/reconstruction", "train/logit_margin")
  return [name for name in order if name in means][:3]
