"""Inception Score, exp of the mean KL(p(class|image) ‖ p(class)), over splits: arXiv:1606.03498."""

import dataclasses

import numpy as np

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import validate as feature_checks


@dataclasses.dataclass
class ScoreSums:
  """The sums that a score needs, gathered a batch at a time; memory does not grow.

  total: how many images there will be; splits: into how many parts, in their order, they are cut.
  Fields to save: counts [S], negative entropies [S] and class shares [S, K] (sums, float64).
  """

  total: int
  splits: int = 10
  counts: np.ndarray | None = None
  negentropy: np.ndarray | None = None
  shares: np.ndarray | None = None

  def __post_init__(self):
    if not 1 <= self.splits <= self.total:
      raise UserError(
        f"Inception Score: {self.splits} splits of {self.total} images leave empty ones; "
        f"give more images, or 1 … {max(self.total, 1)} splits"
      )

  def add(self, logits, index, mask=None):
    """Takes logits [n, K] in; index [n]: which of the images 0 … total − 1 they belong to.

    mask [n]: rows to leave out are 0. Raises UserError on NaN, infinity and a changed K.
    Returns self.
    """
    logits, index = np.asarray(logits), np.asarray(index)
    if mask is not None:
      logits, index = logits[np.asarray(mask) != 0], index[np.asarray(mask) != 0]
    logits = feature_checks.check("logits", logits, least=0).astype(np.float64)
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
    more = (member.sum(axis=1), member @ (p * log_p).sum(axis=1), member @ p)
    return self._add(*more)

  def merge(self, other):
    """Takes in the sums over others of the images, say another process's. Returns self."""
    if (self.total, self.splits) != (other.total, other.splits):
      raise UserError(
        f"Inception Score: {other.splits} splits of {other.total} images do not add to "
        f"{self.splits} of {self.total}: gather both under one total and number of splits"
      )
    return self if other.shares is None else self._add(other.counts, other.negentropy, other.shares)

  def _add(self, counts, negentropy, shares):
    if self.shares is None:
      self.counts, self.negentropy = np.zeros_like(counts), np.zeros_like(negentropy)
      self.shares = np.zeros_like(shares)
    classes = self.shares.shape[1]
    feature_checks.check_width("logits", shares.shape[1], "what came before", classes)
    self.counts += counts
    self.negentropy += negentropy
    self.shares += shares
    return self

  def score(self):
    """(mean, standard deviation) over the splits; UserError unless every image came in once."""
    sizes = np.diff(np.arange(self.splits + 1) * self.total // self.splits)
    if self.counts is None or np.any(self.counts != sizes):
      came = 0 if self.counts is None else int(self.counts.sum())
      raise UserError(
        f"Inception Score: {came} logits came in, not one for each of {self.total} images: "
        "score after all of them, each once"
      )
    q = self.shares / sizes[:, None]
    # 0 log 0 = 0: a class that no image may have.
    marginal = (q * np.log(np.where(q > 0, q, 1.0))).sum(axis=1)
    scores = np.exp(self.negentropy / sizes - marginal)
    return float(scores.mean()), float(scores.std())


def inception_score(logits, splits=10):
  """(mean, standard deviation over splits) for logits [n, K] in the images' order, not shuffled."""
  logits = np.asarray(logits)
  return ScoreSums(len(logits), splits).add(logits, np.arange(len(logits))).score()
