"""Progress of a stage: a bar with rate and ETA on a terminal, plain lines otherwise."""

import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
  """Shows one stage's progress; a context manager."""

  def __init__(self, title, total, start):
    self.title, self.total = title, total
    self._bar = None
    if sys.stdout.isatty():
      self._bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
      )
      self._task = self._bar.add_task(title, total=total, completed=start, rate="", figures="")

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      self._bar.stop()

  def line(self, text):
    """Prints one line of its own."""
    if self._bar:
      self._bar.console.print(text, highlight=False, markup=False)
    else:
      print(text, flush=True)

  def update(self, step, images_per_second, step_seconds, metrics):
    """Shows the rate, the time to go and the first few metrics after `step` steps."""
    figures = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in metrics.items())
    rate = f"{images_per_second:.1f} images/s"
    if self._bar:
      self._bar.update(self._task, completed=step, rate=rate, figures=figures)
      return
    left = int((self.total - step) * step_seconds)
    eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    print(f"{self.title}  {step}/{self.total}  {rate}  ETA {eta}  {figures}", flush=True)
