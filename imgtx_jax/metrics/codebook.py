"""Usage and perplexity of a codebook. Bits per code are in losses/cross_entropy.py."""

import numpy as np


def usage(counts):
  """Returns the fraction of codes that occur, from counts [V]."""
  return float(np.mean(np.asarray(counts) > 0))


def perplexity(counts):
  """Returns exp of the entropy of the codes, from counts [V].

  It is 1 if only one code occurs and V if all are equally frequent.
  """
  counts = np.asarray(counts, np.float64)
  probs = counts[counts > 0] / max(counts.sum(), 1)
  return float(np.exp(-(probs * np.log(probs)).sum()))
