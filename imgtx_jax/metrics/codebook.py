"""How much of a codebook is in use. Bits per code: losses/codes.py."""

import numpy as np


def usage(counts):
  """Share of the codes that occur at all; counts [V] of how often each does."""
  return float(np.mean(np.asarray(counts) > 0))


def perplexity(counts):
  """exp of the codes' entropy: how many equally frequent codes would tell as much; counts [V].

  1 if one code is all there is, V if all are equally frequent.
  """
  counts = np.asarray(counts, np.float64)
  shares = counts[counts > 0] / max(counts.sum(), 1)
  return float(np.exp(-(shares * np.log(shares)).sum()))
