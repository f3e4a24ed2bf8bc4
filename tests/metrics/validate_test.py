"""Checks that all figures on features share."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.metrics import frechet, inception_score, kid, precision_recall
from imgtx_jax.metrics import validate as feature_checks


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def moments(samples, reference):
  first, second = frechet.Moments().add(samples), frechet.Moments().add(reference)
  return frechet.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def score(samples, reference):
  return inception_score.inception_score(samples)


def kernel_distance(samples, reference):
  return kid.kernel_distance(samples, reference, subsets=1, subset_size=12)


FIGURES = [moments, score, kernel_distance, precision_recall.precision_recall]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("figure", FIGURES)
def test_features_must_be_finite(figure, bad):
  samples = normal(12, 3)
  samples[5, 1] = samples[7] = bad
  with pytest.raises(UserError, match="2 of 12 rows hold NaN or infinity, first row 5"):
    figure(samples, normal(12, 3))


@pytest.mark.parametrize("figure", FIGURES)
def test_too_few_images(figure):
  with pytest.raises(UserError, match=r"\b1 images.* give more images"):
    figure(normal(1, 3), normal(12, 3))


@pytest.mark.parametrize("figure", [moments, kernel_distance, precision_recall.precision_recall])
def test_widths_must_agree(figure):
  with pytest.raises(UserError, match="3 .*4.*one network and layer"):
    figure(normal(12, 3), normal(12, 4))


def test_features_are_rows():
  with pytest.raises(UserError, match=r"samples: .*\(2, 3, 4\).*flatten"):
    feature_checks.check("samples", normal(2, 3, 4))


@pytest.mark.parametrize("figure", FIGURES)
def test_errors_are_one_line(figure):
  with pytest.raises(UserError) as caught:
    figure(normal(1, 3) * np.nan, normal(1, 3))
  assert "\n" not in str(caught.value)
