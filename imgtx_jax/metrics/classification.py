"""Figures of a classifier's answers: confusion, shares with intervals, and which classes a model
favours once the classifier's own confusion is taken off."""

import numpy as np

_NORMAL_95 = 1.959964
# Deviations beyond which a class is called favoured or dropped: 99 % of the normal law's.
_NORMAL_99 = 2.575829


def confusion(labels, answers, classes):
  """Counts int [K, K] of labels int [n] (rows) that got answers int [n] (columns)."""
  counts = np.zeros((classes, classes), np.int64)
  np.add.at(counts, (np.asarray(labels), np.asarray(answers)), 1)
  return counts


def wilson_interval(count, total):
  """95 % interval (low, high) of a share of which `count` of `total` were seen (Wilson, 1927);
  holds for small counts and shares near 0 or 1 too."""
  if total == 0:
    return 0.0, 1.0
  share, z = count / total, _NORMAL_95
  centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
  width = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
  return max(float(centre - width), 0.0), min(float(centre + width), 1.0)


def favour(counts, data_shares, real_confusion):
  """Which classes samples without a label fall into, against what the data would.

  counts int [K]: the classifier's answers on the samples; data_shares [K] of the classes in the
  data; real_confusion int [K, K] on held-out real images. Were the samples real ones in the data's
  shares, the classifier would say class j of a share Σ_i data_shares_i · P(j | i): `expected`.
  Returns a list of K dicts: count, share, low and high (95 %), data_share, expected,
  expected_deviation (the confusion is estimated too), deviations (of the difference) and verdict:
  "favoured", "dropped" or "" (99 % of chance for each class).
  """
  counts, shares = np.asarray(counts), np.asarray(data_shares, np.float64)
  total, images = int(counts.sum()), real_confusion.sum(axis=1, keepdims=True)
  # A class without a held-out image counts as recognised: nothing is known of its confusion.
  answers = np.where(images > 0, real_confusion / np.maximum(images, 1), np.eye(len(counts)))
  expected = shares @ answers
  # Half an image of each answer, or a class never confused in few images would have no deviation.
  smooth = (real_confusion + 0.5) / (images + 0.5 * len(counts))
  variance = shares**2 @ (smooth * (1 - smooth) / np.maximum(images, 1))
  rows = []
  for j, count in enumerate(counts.tolist()):
    share = count / max(total, 1)
    low, high = wilson_interval(count, total)
    middle = (count + total * expected[j]) / max(2 * total, 1)
    deviation = np.sqrt(middle * (1 - middle) / max(total, 1) + variance[j])
    score = float((share - expected[j]) / max(deviation, 1e-12))
    verdict = "" if abs(score) < _NORMAL_99 else ("favoured" if score > 0 else "dropped")
    rows.append(
      {
        "count": count,
        "share": share,
        "low": low,
        "high": high,
        "data_share": float(shares[j]),
        "expected": float(expected[j]),
        "expected_deviation": float(np.sqrt(variance[j])),
        "deviations": score,
        "verdict": verdict,
      }
    )
  return rows


def mean_accuracy(counts):
  """Mean over classes of the share that is right, of a confusion int [K, K]; classes without an
  image do not count. Guessing, and always giving one answer, reach 1/K."""
  counts = np.asarray(counts)
  totals = counts.sum(axis=1)
  return float(np.mean(np.diag(counts)[totals > 0] / totals[totals > 0]))


def discriminant(features, labels, classes, shrinkage=0.3):
  """A linear discriminant of features [n, D] with labels int [n]: predict([m, D]) → int [m].

  Classes have equal priors and share a covariance, which is shrunk by `shrinkage` towards a
  multiple of the identity: there may be fewer images than features. A class without an image is
  never the answer.
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


def within_deviation(values, labels):
  """Standard deviation of values [n] around the mean of their own label, int [n]; of all around
  their mean where no label has two."""
  values, labels = np.asarray(values, np.float64), np.asarray(labels)
  found, place = np.unique(labels, return_inverse=True)
  means = np.bincount(place, weights=values) / np.bincount(place)
  free = len(values) - len(found)
  if free < 1:
    return float(np.std(values))
  return float(np.sqrt(np.sum((values - means[place]) ** 2) / free))


def share_above(first, second):
  """Share of pairs (a of first [n], b of second [m]) with a > b, ties as half; None without any.
  0.5 is not told apart, 1 is told apart in full (the area under the ROC curve)."""
  first, second = np.asarray(first), np.asarray(second)
  if not len(first) or not len(second):
    return None
  ordered = np.sort(second)
  below = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
  return float(below.mean() / (2 * len(second)))
