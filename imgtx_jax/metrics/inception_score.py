"""Inception Score (arXiv:1606.03498): exp of the mean KL(p(class|image) ‖ p(class)), by splits."""

import dataclasses

import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import validate as feature_checks


@dataclasses.dataclass
class ScoreSums:
  """Accumulates the sums of the score over batches, in constant memory.

  total: number of images. splits: number S of consecutive parts the images are divided into.
  counts: [S], images of each split. negentropy: [S], sums of Σ p log p. probs: [S, K], sums of the
  class probabilities. Sums are float64. Raises UserError unless 1 ≤ splits ≤ total.
  """

  total: int
  splits: int = 10
  counts: np.ndarray | None = None
  negentropy: np.ndarray | None = None
  probs: np.ndarray | None = None

  def __post_init__(self):
    if not 1 <= self.splits <= self.total:
      raise UserError(
        f"Inception Score: {self.splits} splits of {self.total} images leave empty ones; "
        f"give more images, or 1 … {max(self.total, 1)} splits"
      )

  def add(self, logits, index, mask=None):
    """Adds a batch of logits.

    Args:
      logits: [n, K].
      index: int [n], the images' numbers in 0 … total − 1.
      mask: [n], 0 for rows to skip; by default none is skipped.

    Returns:
      self.

    Raises:
      UserError: if logits hold NaN or infinity, K differs from before, or an index is out of range.
    """
    logits, index = np.asarray(logits), np.asarray(index)
    if mask is not None:
      logits, index = logits[np.asarray(mask) != 0], index[np.asarray(mask) != 0]
    logits = feature_checks.check("logits", logits, minimum=0).astype(np.float64)
    if len(index) and not 0 <= index.min() <= index.max() < self.total:
      raise UserError(
        f"Inception Score: image {index.max() if index.min() >= 0 else index.min()} is outside "
        f"0 … {self.total - 1}: set total to the number of images"
      )
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    # Split s holds the images s·total // splits up to (s + 1)·total // splits.
    bounds = np.arange(1, self.splits + 1) * self.total // self.splits
    member = np.searchsorted(bounds, index, side="right") == np.arange(self.splits)[:, None]
    member = member.astype(np.float64)  # [S, n]
    return self._add(member.sum(axis=1), member @ (p * log_p).sum(axis=1), member @ p)

  def merge(self, other):
    """Adds the sums of other images, for example another process's. Returns self.

    Raises UserError if total, splits or K differ.
    """
    if (self.total, self.splits) != (other.total, other.splits):
      raise UserError(
        f"Inception Score: {other.splits} splits of {other.total} images do not add to "
        f"{self.splits} of {self.total}: gather both under one total and number of splits"
      )
    return self if other.probs is None else self._add(other.counts, other.negentropy, other.probs)

  def _add(self, counts, negentropy, probs):
    if self.probs is None:
      self.counts, self.negentropy = np.zeros_like(counts), np.zeros_like(negentropy)
      self.probs = np.zeros_like(probs)
    classes = self.probs.shape[1]
    feature_checks.check_width("logits", probs.shape[1], "what came before", classes)
    self.counts += counts
    self.negentropy += negentropy
    self.probs += probs
    return self

  def score(self):
    """Returns (mean, standard deviation) of the score over splits.

    Raises UserError unless each image was added exactly once.
    """
    sizes = np.diff(np.arange(self.splits + 1) * self.total // self.splits)
    if self.counts is None or np.any(self.counts != sizes):
      added = 0 if self.counts is None else int(self.counts.sum())
      raise UserError(
        f"Inception Score: {added} logits came in, not one for each of {self.total} images: "
        "score after all of them, each once"
      )
    q = self.probs / sizes[:, None]
    # 0 log 0 = 0, for classes without probability.
    marginal = (q * np.log(np.where(q > 0, q, 1.0))).sum(axis=1)
    scores = np.exp(self.negentropy / sizes - marginal)
    return float(scores.mean()), float(scores.std())


def inception_score(logits, splits=10):
  """Returns (mean, standard deviation) over splits for logits [n, K]; images are not shuffled."""
  logits = np.asarray(logits)
  return ScoreSums(len(logits), splits).add(logits, np.arange(len(logits))).score()
