import numpy as np
import pytest

from imgtx_jax.metrics import classification


def test_confusion_by_hand():
  counts = classification.confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 0, 2], 3)
  assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]


@pytest.mark.parametrize(
  "count, total, low, high",
  # Published values of Wilson's interval without continuity correction (Newcombe, 1998).
  [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_interval(count, total, low, high):
  assert classification.wilson_interval(count, total) == pytest.approx((low, high), abs=1e-4)


def test_the_confusion_on_real_images_is_taken_off():
  # The head calls half of class 0 class 1: as many samples of each are what the data would give.
  confusion = np.array([[50, 50, 0], [0, 100, 0], [0, 0, 100]])
  shares = [0.4, 0.2, 0.4]
  rows = classification.class_preferences([200, 400, 400], shares, confusion)
  assert [row["expected"] for row in rows] == pytest.approx([0.2, 0.4, 0.4])
  assert [row["verdict"] for row in rows] == ["", "", ""]
  assert [row["deviations"] for row in rows] == pytest.approx([0, 0, 0], abs=1e-9)
  rows = classification.class_preferences([200, 100, 700], shares, confusion)
  assert [row["verdict"] for row in rows] == ["", "dropped", "favoured"]
  assert sum(row["count"] for row in rows) == 1000
  assert sum(row["fraction"] for row in rows) == pytest.approx(1)
  assert all(row["low"] < row["fraction"] < row["high"] for row in rows)


def test_few_held_out_images_widen_the_doubt():
  counts, shares = [70, 30], [0.5, 0.5]
  sure = classification.class_preferences(counts, shares, np.array([[400, 100], [100, 400]]))
  unsure = classification.class_preferences(counts, shares, np.array([[4, 1], [1, 4]]))
  assert sure[0]["verdict"] == "favoured" and unsure[0]["verdict"] == ""
  unknown = classification.class_preferences(counts, shares, np.zeros((2, 2), int))
  assert [row["expected"] for row in unknown] == shares and unknown[0]["verdict"] == ""


def test_mean_accuracy():
  assert classification.mean_accuracy([[8, 2, 0], [1, 1, 0], [0, 0, 0]]) == pytest.approx(0.65)
  assert classification.mean_accuracy([[90, 0], [10, 0]]) == 0.5


def test_discriminant_with_fewer_images_than_features():
  draw = np.random.default_rng(0)
  centres = draw.normal(size=(4, 60)) * [[1], [1], [1], [0]]
  labels = np.repeat([0, 1, 2], 10)
  predict = classification.linear_discriminant(
    centres[labels] + draw.normal(size=(30, 60)), labels, 4
  )
  others = np.repeat([0, 1, 2], 50)
  found = predict(centres[others] + draw.normal(size=(150, 60)))
  assert np.mean(found == others) > 0.95
  assert not np.any(predict(draw.normal(size=(50, 60))) == 3)


def test_deviation_within_labels():
  values, labels = [1.0, 3.0, 11.0, 13.0], [0, 0, 1, 1]
  assert classification.within_class_deviation(values, labels) == pytest.approx(np.sqrt(2))
  assert classification.within_class_deviation(values, [0, 1, 2, 3]) == pytest.approx(
    np.std(values)
  )


def test_roc_auc():
  assert classification.roc_auc([2, 3], [1, 1.5]) == 1
  assert classification.roc_auc([1, 3], [2, 4]) == 0.25
  assert classification.roc_auc([1.0], [1.0]) == 0.5
  assert classification.roc_auc([], [1.0]) is None
