"""Codebook usage and perplexity, by hand."""

import numpy as np
import pytest

from imgtx_jax.metrics import codes


def test_usage_by_hand():
  assert codes.usage([3, 0, 1, 0]) == 0.5
  assert codes.usage(np.ones(8)) == 1.0
  assert codes.usage(np.zeros(8)) == 0.0


def test_perplexity_by_hand():
  assert codes.perplexity(np.full(16, 7)) == pytest.approx(16.0)
  assert codes.perplexity([0, 9, 0]) == pytest.approx(1.0)
  # Entropy of ½, ¼, ¼: 1.5 bits.
  assert codes.perplexity([2, 1, 1, 0]) == pytest.approx(2**1.5)
  assert codes.perplexity(np.zeros(4)) == 1.0  # nothing counted yet
