"""Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797) of features.

Each asks which points lie within which others' balls: a ball reaches to its centre's k-th nearest
neighbour in its own set. Distances come in float32 from matrix products, a block of rows at a time.
Where such a distance and a radius are too close to call, the pair is computed again in float64, so
that the counts are exact: sets that are equal give 1, and duplicates lie at distance 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.metrics import validate as feature_checks

BLOCK = 2**26  # distances at a time: 256 MB
_CHUNK = 2**22  # features at a time in float64: 32 MB
_SPARE = 4  # more candidates for a k-th neighbour than k, as float32 may swap some


def precision_recall(samples, reference, *, neighbours=3, density_neighbours=5):
  """Dict of precision, recall, f_score, density and coverage, each a float.

  samples [n, D] are the model's features, reference [m, D] real ones. neighbours is the k of
  precision and recall, density_neighbours that of density and coverage. Precision and recall count
  a ball's surface in (torch-fidelity), density and coverage do not (their authors' code). Memory:
  twice the features, and under 1 GB. Raises UserError where a set has no k-th neighbour.
  """
  ks = (neighbours, density_neighbours)
  use = f"a neighbour number {max(ks)} of each"
  samples, reference = feature_checks.check_pair(samples, reference, max(ks) + 1, use)
  centre = reference.mean(axis=0, dtype=np.float64).astype(np.float32)
  ours, real = _Points.make(samples, centre), _Points.make(reference, centre)
  (ball,) = _squared_radii(ours, (neighbours,)).T
  real_ball, density_ball = _squared_radii(real, ks).T
  inside, near, found, covered = _count(ours, real, ball, real_ball, density_ball)
  precision, recall = float(inside.mean()), float(found.mean())
  return {
    "precision": precision,
    "recall": recall,
    "f_score": 2 * precision * recall / max(precision + recall, 1e-5),
    "density": float(near.mean()) / density_neighbours,
    "coverage": float(covered.mean()),
  }


def block_rows(rows, columns):
  """How many of `rows` to compare at a time with all columns: a block keeps under BLOCK entries."""
  return max(1, min(rows, BLOCK // columns))


@dataclasses.dataclass
class _Points:
  """A set of features: as given [n, D], and for the device centred in float32, with norms [n].

  Centring leaves distances alone and takes most of the cancellation out of them.
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
  """First rows of blocks that cover all; the last may overlap the one before, not be smaller."""
  return [min(start, count - rows) for start in range(0, count, rows)]


def _exact_squared(a, b):
  """Squared distances [n] of rows a [n, D] and b [n, D], float64: a pair always gives the same."""
  return ((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum(axis=-1)


def _exact_pairs(a, rows, b, columns):
  """Squared distances [n] between a[rows] and b[columns], float64, few at a time."""
  step = max(1, _CHUNK // a.shape[1])
  parts = [
    _exact_squared(a[rows[at : at + step]], b[columns[at : at + step]])
    for at in range(0, len(rows), step)
  ]
  return np.concatenate([np.zeros(0), *parts])


def _squared_radii(points, ks):
  """Squared distances [n, len(ks)] of each point to its k-th nearest other, float64."""
  rows = block_rows(len(points), len(points))
  count = min(max(ks) + _SPARE, len(points) - 1)
  radii = np.empty((len(points), len(ks)))
  for start in _starts(len(points), rows):
    index = np.asarray(_nearest(points.centred, points.norms, start, rows=rows, count=count))
    centres = np.repeat(np.arange(start, start + rows), count)
    found = _exact_pairs(points.exact, centres, points.exact, index.reshape(-1))
    found = np.sort(found.reshape(rows, count), axis=1)
    radii[start : start + rows] = found[:, np.array(ks) - 1]
  return radii


def _count(ours, real, ball, real_ball, density_ball):
  """Who lies in whose ball, of n samples and m references; squared radii [n], [m], [m].

  Returns whether a sample is in a real ball [n], in how many of the density's [n], whether a
  reference is in a sample's ball [m], and whether the density's ball around it has a sample [m].
  """
  inside, near = np.zeros(len(ours), bool), np.zeros(len(ours), np.int64)
  found, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
  rows = block_rows(len(ours), len(real))
  radii = [jnp.asarray(r, jnp.float32) for r in (ball, real_ball, density_ball)]
  arrays = (ours.centred, ours.norms, real.centred, real.norms, *radii)
  for start in _starts(len(ours), rows):
    block = slice(start, start + rows)
    unclear, *sure = (np.asarray(x) for x in _compare(*arrays, start, rows=rows))
    inside[block], near[block] = sure[:2]
    found |= sure[2]
    covered |= sure[3]
    row, column = np.nonzero(unclear)
    row += start
    distance = _exact_pairs(ours.exact, row, real.exact, column)
    inside[row[distance <= real_ball[column]]] = True
    found[column[distance <= ball[row]]] = True
    within = distance < density_ball[column]
    np.add.at(near, row[within], 1)
    covered[column[within]] = True
  return inside, near, found, covered


def _squared_distances(rows, row_norms, columns, column_norms):
  """[r, D], [r], [c, D], [c] → squared distances [r, c] and a bound on their errors [r, c]."""
  # Full float32 also where a device's default for matrix products is less.
  products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
  norms = row_norms[:, None] + column_norms
  # Rounding errors of a sum of D products grow like √D: this is many of their deviations.
  error = (4 + 2 * rows.shape[1] ** 0.5) * jnp.finfo(jnp.float32).eps
  return norms - 2 * products, error * norms


@functools.partial(jax.jit, static_argnames=("rows", "count"))
def _nearest(points, norms, start, *, rows, count):
  """Indices [rows, count] of the others nearest to points[start : start + rows]."""
  block = jax.lax.dynamic_slice_in_dim(points, start, rows)
  block_norms = jax.lax.dynamic_slice_in_dim(norms, start, rows)
  squared, _ = _squared_distances(block, block_norms, points, norms)
  itself = start + jnp.arange(rows)[:, None] == jnp.arange(len(points))
  return jax.lax.top_k(-jnp.where(itself, jnp.inf, squared), count)[1]


@functools.partial(jax.jit, static_argnames="rows")
def _compare(ours, norms, real, real_norms, ball, real_ball, density_ball, start, *, rows):
  """A block of _count: the pairs that are too close to call [rows, m], and the answers of the
  others [rows], [rows], [m], [m]."""
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
