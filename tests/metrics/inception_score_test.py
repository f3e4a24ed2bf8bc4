"""Inception Score: against the reference implementation's, closed forms, and streaming."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.metrics.inception_score import ScoreSums, inception_score


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def test_parity(parity):
  manifest, recorded, _ = parity("metrics")
  expected = manifest["expected"]
  assert (expected["isc_splits"], expected["isc_shuffle"]) == (10, False)
  found = inception_score(recorded["logits"], splits=10)
  np.testing.assert_allclose(found, [expected["isc_mean"], expected["isc_std"]], rtol=1e-4)


def test_closed_forms():
  sure = 1e4 * np.tile(np.eye(4), (10, 1))  # each split of 20 holds every class five times
  np.testing.assert_allclose(inception_score(sure, splits=2), [4.0, 0.0], atol=1e-9)
  assert inception_score(np.zeros((20, 7)), splits=4) == pytest.approx((1.0, 0.0), abs=1e-12)
  # One split of a single class, one of two classes.
  halves = 1e4 * np.concatenate([np.eye(2)[[0] * 6], np.eye(2)[[0, 1] * 3]])
  np.testing.assert_allclose(inception_score(halves, splits=2), [1.5, 0.5], atol=1e-9)


def test_splits_are_cut_as_the_reference_cuts_them():
  x = normal(23, 5)
  scores = []
  for i in range(4):
    part = x[i * 23 // 4 : (i + 1) * 23 // 4].astype(np.float64)
    p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
    kl = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
    scores.append(np.exp(kl.mean()))
  np.testing.assert_allclose(inception_score(x, 4), [np.mean(scores), np.std(scores)], rtol=1e-10)


def test_batches_masks_and_processes_do_not_matter():
  x, index = 3 * normal(53, 6), np.arange(53)
  expected = inception_score(x, 5)
  for batch in (7, 64):
    sums = [ScoreSums(53, 5), ScoreSums(53, 5)]
    for count, start in enumerate(range(0, 53, batch)):
      block = slice(start, start + batch)
      rows = np.concatenate([x[block], np.full((2, 6), np.nan)])  # as padding leaves them
      at, mask = np.r_[index[block], 0, 0], np.r_[np.ones(len(x[block])), 0, 0]
      sums[count % 2].add(rows, at, mask)
    np.testing.assert_allclose(sums[0].merge(sums[1]).score(), expected, rtol=1e-12)


def test_every_image_comes_in_once():
  sums = ScoreSums(20, 2).add(normal(19, 3), np.arange(19))
  with pytest.raises(UserError, match="19 logits came in.* 20 images"):
    sums.score()
  with pytest.raises(UserError, match="20 logits came in"):  # one twice
    sums.add(normal(1, 3), np.array([0])).score()
  with pytest.raises(UserError, match="0 logits came in"):
    ScoreSums(20, 2).score()


@pytest.mark.parametrize("index", [20, -1])
def test_an_image_outside(index):
  with pytest.raises(UserError, match=rf"image {index} is outside 0 … 19"):
    ScoreSums(20, 2).add(normal(2, 3), np.array([3, index]))


def test_sums_that_do_not_fit():
  sums = ScoreSums(20, 2).add(normal(2, 3), np.arange(2))
  with pytest.raises(UserError, match="logits: 4 features.* has 3"):
    sums.add(normal(2, 4), np.arange(2))
  with pytest.raises(UserError, match="5 splits of 20 .* 2 of 20"):
    sums.merge(ScoreSums(20, 5))
  with pytest.raises(UserError, match="10 splits of 9 images.*1 … 9 splits"):
    inception_score(normal(9, 3))
