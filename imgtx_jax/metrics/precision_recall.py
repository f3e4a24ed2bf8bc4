"""Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797) of features.

All count points inside balls. A ball is centred on a point and reaches its k-th nearest neighbour
in the same set. Distances are computed in float32 by matrix products, a block of rows at a time.
Where the error bound leaves open whether a distance exceeds a radius, the pair is computed again in
float64. So counts are exact: equal sets give 1, and duplicates have distance 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.metrics import validate as feature_checks

BLOCK = 2**26  # distances per block: 256 MB
_CHUNK = 2**22  # float64 features per chunk: 32 MB
_SPARE = 4  # extra candidates for the k-th neighbour, whose order float32 may change


def precision_recall(samples, reference, *, neighbours=3, density_neighbours=5):
  """Returns a dict of floats: precision, recall, f_score, density and coverage.

  Balls of precision and recall include their surface (as in torch-fidelity); those of density and
  coverage do not (as in their authors' code). Memory: twice the features and under 1 GB.

  Args:
    samples: the model's features [n, D].
    reference: real features [m, D].
    neighbours: k of precision and recall.
    density_neighbours: k of density and coverage.

  Raises:
    UserError: if a set has no k-th neighbour, or features are unsuitable (validate.check_pair).
  """
  ks = (neighbours, density_neighbours)
  use = f"a neighbour number {max(ks)} of each"
  samples, reference = feature_checks.check_pair(samples, reference, max(ks) + 1, use)
  centre = reference.mean(axis=0, dtype=np.float64).astype(np.float32)
  ours, real = _Points.make(samples, centre), _Points.make(reference, centre)
  (ball,) = _squared_radii(ours, (neighbours,)).T
  real_ball, density_ball = _squared_radii(real, ks).T
  inside, near, recalled, covered = _count(ours, real, ball, real_ball, density_ball)
  precision, recall = float(inside.mean()), float(recalled.mean())
  return {
    "precision": precision,
    "recall": recall,
    "f_score": 2 * precision * recall / max(precision + recall, 1e-5),
    "density": float(near.mean()) / density_neighbours,
    "coverage": float(covered.mean()),
  }


def block_rows(rows, columns):
  """Returns the rows per block, at most `rows`, such that a block has at most BLOCK entries."""
  return max(1, min(rows, BLOCK // columns))


@dataclasses.dataclass
class _Points:
  """A set of features.

  exact: [n, D] as given. centred: float32 [n, D] on the device, minus a common centre, which
  reduces cancellation. norms: float32 [n], squared norms of centred.
  """

  exact: np.ndarray
  centred: jax.Array
  norms: jax.Array

  @classmethod
  def make(cls, features, centre):
    centred = features.astype(np.float32) - centre
    norms = np.einsum("nd,nd->n", centred, centred, dtype=np.float64).astype(np.float32)
    return cls(features, jnp.asarray(centred), jnp.asarray(norms))

  def __len__(self):
    return len(self.exact)


def _starts(count, rows):
  """Returns the first rows of equal blocks that cover all rows; the last block may overlap."""
  return [min(start, count - rows) for start in range(0, count, rows)]


def _exact_squared(a, b):
  """Returns squared distances [n] of rows a [n, D] and b [n, D]; float64, reproducible per pair."""
  return ((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum(axis=-1)


def _exact_pairs(a, rows, b, columns):
  """Returns squared distances [n] between a[rows] and b[columns]; float64, chunk by chunk."""
  step = max(1, _CHUNK // a.shape[1])
  parts = [
    _exact_squared(a[rows[start : start + step]], b[columns[start : start + step]])
    for start in range(0, len(rows), step)
  ]
  return np.concatenate([np.zeros(0), *parts])


def _squared_radii(points, ks):
  """Returns squared distances [n, len(ks)] of each point to its k-th nearest other; float64."""
  rows = block_rows(len(points), len(points))
  count = min(max(ks) + _SPARE, len(points) - 1)
  radii = np.empty((len(points), len(ks)))
  for start in _starts(len(points), rows):
    index = np.asarray(_nearest(points.centred, points.norms, start, rows=rows, count=count))
    centres = np.repeat(np.arange(start, start + rows), count)
    squared = _exact_pairs(points.exact, centres, points.exact, index.reshape(-1))
    squared = np.sort(squared.reshape(rows, count), axis=1)
    radii[start : start + rows] = squared[:, np.array(ks) - 1]
  return radii


def _count(ours, real, ball, real_ball, density_ball):
  """Counts points inside balls.

  Args:
    ours: _Points of n samples.
    real: _Points of m references.
    ball: [n], squared radii of the samples' balls.
    real_ball: [m], squared radii of the references' balls.
    density_ball: [m], the same for density and coverage.

  Returns:
    inside: bool [n], whether the sample is in a reference's ball (precision).
    near: int [n], the number of references whose density ball has the sample.
    recalled: bool [m], whether the reference is in a sample's ball.
    covered: bool [m], whether the reference's density ball has a sample.
  """
  inside, near = np.zeros(len(ours), bool), np.zeros(len(ours), np.int64)
  recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
  rows = block_rows(len(ours), len(real))
  radii = [jnp.asarray(r, jnp.float32) for r in (ball, real_ball, density_ball)]
  arrays = (ours.centred, ours.norms, real.centred, real.norms, *radii)
  for start in _starts(len(ours), rows):
    block = slice(start, start + rows)
    unclear, *sure = (np.asarray(x) for x in _compare(*arrays, start, rows=rows))
    inside[block], near[block] = sure[:2]
    recalled |= sure[2]
    covered |= sure[3]
    row, column = np.nonzero(unclear)
    row += start
    distance = _exact_pairs(ours.exact, row, real.exact, column)
    inside[row[distance <= real_ball[column]]] = True
    recalled[column[distance <= ball[row]]] = True
    within = distance < density_ball[column]
    np.add.at(near, row[within], 1)
    covered[column[within]] = True
  return inside, near, recalled, covered


def _squared_distances(rows, row_norms, columns, column_norms):
  """Returns squared distances [r, c] and bounds on their errors [r, c].

  Args:
    rows: [r, D].
    row_norms: [r], squared norms.
    columns: [c, D].
    column_norms: [c], squared norms.
  """
  # Full float32, also on devices whose matrix products have less by default.
  products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
  norms = row_norms[:, None] + column_norms
  # Rounding errors of a sum of D products grow like √D; the bound is many standard deviations.
  error = (4 + 2 * rows.shape[1] ** 0.5) * jnp.finfo(jnp.float32).eps
  return norms - 2 * products, error * norms


@functools.partial(jax.jit, static_argnames=("rows", "count"))
def _nearest(points, norms, start, *, rows, count):
  """Returns indices [rows, count] of the other points nearest to points[start : start + rows]."""
  block = jax.lax.dynamic_slice_in_dim(points, start, rows)
  block_norms = jax.lax.dynamic_slice_in_dim(norms, start, rows)
  squared, _ = _squared_distances(block, block_norms, points, norms)
  itself = start + jnp.arange(rows)[:, None] == jnp.arange(len(points))
  return jax.lax.top_k(-jnp.where(itself, jnp.inf, squared), count)[1]


@functools.partial(jax.jit, static_argnames="rows")
def _compare(ours, norms, real, real_norms, ball, real_ball, density_ball, start, *, rows):
  """Computes one block of _count in float32.

  Returns the unclear pairs, bool [rows, m], and _count's results for the others: [rows], [rows],
  [m], [m].
  """
  block, block_norms, ball = (
    jax.lax.dynamic_slice_in_dim(x, start, rows) for x in (ours, norms, ball)
  )
  squared, error = _squared_distances(block, block_norms, real, real_norms)
  unclear = jnp.zeros(squared.shape, bool)
  for radius in (ball[:, None], real_ball, density_ball):
    unclear |= jnp.abs(squared - radius) <= error
  squared = jnp.where(unclear, jnp.inf, squared)
  within = squared < density_ball
  return (
    unclear,
    jnp.any(squared < real_ball, axis=1),
    jnp.sum(within, axis=1),
    jnp.any(squared < ball[:, None], axis=0),
    jnp.any(within, axis=0),
  )
