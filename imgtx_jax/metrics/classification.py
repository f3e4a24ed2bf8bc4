"""Metrics of a classifier's predictions: confusion, intervals, accuracy, and class preferences.

Dimensions: K classes, n and m numbers of images, D width of features.
"""

import numpy as np

_NORMAL_95 = 1.959964
# Standard deviations beyond which a class is favoured or dropped: 99 % of a normal distribution.
_NORMAL_99 = 2.575829


def confusion(labels, predictions, classes):
  """Returns counts int [K, K] of labels int [n] (rows) and predictions int [n] (columns)."""
  counts = np.zeros((classes, classes), np.int64)
  np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
  return counts


def wilson_interval(count, total):
  """Returns the 95 % interval (low, high) of a fraction estimated by count / total.

  This is Wilson's interval (1927), valid for small counts and fractions near 0 or 1.
  """
  if total == 0:
    return 0.0, 1.0
  fraction, z = count / total, _NORMAL_95
  centre = (fraction + z**2 / (2 * total)) / (1 + z**2 / total)
  root = np.sqrt(fraction * (1 - fraction) / total + z**2 / (4 * total**2))
  width = z / (1 + z**2 / total) * root
  return max(float(centre - width), 0.0), min(float(centre + width), 1.0)


def class_preferences(counts, data_fractions, real_confusion):
  """Finds the classes that unconditional samples favour or drop.

  If the samples were distributed as the data, the classifier would predict class j for a fraction
  Σ_i data_fractions_i · P(j | i) of them: `expected`. P comes from the classifier's confusion on
  real images.

  Args:
    counts: int [K], the classifier's predictions on the samples.
    data_fractions: [K], the classes' fractions of the data.
    real_confusion: int [K, K] on held-out real images.

  Returns:
    A list of K dicts: count, fraction (of the samples), low and high (its 95 % interval),
    data_fraction (of the data), expected, expected_deviation (of the estimated
    confusion), deviations (the difference over its standard deviation) and verdict: "favoured",
    "dropped", or "" if the difference is within the 99 % interval of that class.
  """
  counts, fractions = np.asarray(counts), np.asarray(data_fractions, np.float64)
  total, images = int(counts.sum()), real_confusion.sum(axis=1, keepdims=True)
  # A class without a held-out image counts as recognised: its confusion is unknown.
  probs = np.where(images > 0, real_confusion / np.maximum(images, 1), np.eye(len(counts)))
  expected = fractions @ probs
  # Add half a count each: a class never confused in few images would have no deviation.
  smooth = (real_confusion + 0.5) / (images + 0.5 * len(counts))
  variance = fractions**2 @ (smooth * (1 - smooth) / np.maximum(images, 1))
  rows = []
  for j, count in enumerate(counts.tolist()):
    fraction = count / max(total, 1)
    low, high = wilson_interval(count, total)
    middle = (count + total * expected[j]) / max(2 * total, 1)
    deviation = np.sqrt(middle * (1 - middle) / max(total, 1) + variance[j])
    score = float((fraction - expected[j]) / max(deviation, 1e-12))
    verdict = "" if abs(score) < _NORMAL_99 else ("favoured" if score > 0 else "dropped")
    rows.append(
      {
        "count": count,
        "fraction": fraction,
        "low": low,
        "high": high,
        "data_fraction": float(fractions[j]),
        "expected": float(expected[j]),
        "expected_deviation": float(np.sqrt(variance[j])),
        "deviations": score,
        "verdict": verdict,
      }
    )
  return rows


def mean_accuracy(counts):
  """Returns the mean over classes of the recall, from a confusion int [K, K].

  Classes without an image do not count. Random guesses and constant predictions reach 1/K.
  """
  counts = np.asarray(counts)
  totals = counts.sum(axis=1)
  return float(np.mean(np.diag(counts)[totals > 0] / totals[totals > 0]))


def linear_discriminant(features, labels, classes, shrinkage=0.3):
  """Fits a linear discriminant with equal priors and a common covariance.

  Args:
    features: [n, D]; n may be less than D.
    labels: int [n].
    classes: K.
    shrinkage: weight of a multiple of the identity in the covariance.

  Returns:
    A function from features [m, D] to predictions int [m]. It never predicts a class without
    images.
  """
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  counts = np.bincount(labels, minlength=classes)
  means = np.zeros((classes, features.shape[1]))
  np.add.at(means, labels, features)
  means /= np.maximum(counts, 1)[:, None]
  rest = features - means[labels]
  covariance = rest.T @ rest / max(len(rest) - np.count_nonzero(counts), 1)
  scale = max(np.trace(covariance) / len(covariance), 1e-12)
  covariance = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance))
  weights = np.linalg.solve(covariance, means.T)  # [D, K]
  offsets = np.where(counts > 0, -0.5 * np.sum(means.T * weights, axis=0), -np.inf)
  return lambda x: np.argmax(np.asarray(x, np.float64) @ weights + offsets, axis=1)


def within_class_deviation(values, labels):
  """Returns the standard deviation of values [n] around the means of their labels int [n].

  If no label has two values, it is the standard deviation around the common mean.
  """
  values, labels = np.asarray(values, np.float64), np.asarray(labels)
  distinct, index = np.unique(labels, return_inverse=True)
  means = np.bincount(index, weights=values) / np.bincount(index)
  freedom = len(values) - len(distinct)
  if freedom < 1:
    return float(np.std(values))
  return float(np.sqrt(np.sum((values - means[index]) ** 2) / freedom))


def roc_auc(first, second):
  """Returns the area under the ROC curve: the fraction of pairs with first [n] > second [m].

  Ties count half. 0.5 means indistinguishable, 1 means separable. None if a set is empty.
  """
  first, second = np.asarray(first), np.asarray(second)
  if not len(first) or not len(second):
    return None
  ordered = np.sort(second)
  below = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
  return float(below.mean() / (2 * len(second)))
