"""Codebook usage and perplexity, by hand."""

import numpy as np
import pytest

from imgtx_jax.metrics import codebook


def test_usage_by_hand():
  assert codebook.usage([3, 0, 1, 0]) == 0.5
  assert codebook.usage(np.ones(8)) == 1.0
  assert codebook.usage(np.zeros(8)) == 0.0


def test_perplexity_by_hand():
  assert codebook.perplexity(np.full(16, 7)) == pytest.approx(16.0)
  assert codebook.perplexity([0, 9, 0]) == pytest.approx(1.0)
  # Entropy of ½, ¼, ¼: 1.5 bits.
  assert codebook.perplexity([2, 1, 1, 0]) == pytest.approx(2**1.5)
  assert codebook.perplexity(np.zeros(4)) == 1.0  # nothing counted yet
