"""Whether samples are copies: their nearest training images, by pixels and by features."""

import numpy as np

from imgtx_jax.io.image_grid import save_grid

MOST = 1000  # samples, and held-out images, whose nearest training image is looked for
_BLOCK = 2**25  # distances at a time: 128 MB


def need(inputs):
  """Returns why nearest training images cannot be computed, or ""."""
  if inputs.training is None:
    return "it looks among a work directory's training images: give --workdir"
  if inputs.training.size != inputs.samples.size:
    ours, theirs = inputs.samples.size, inputs.training.size
    return f"samples of {ours[0]}×{ours[1]} and training images of {theirs[0]}×{theirs[1]} differ"
  return ""


def uses(inputs):
  """Returns the stores that `measure` reads."""
  pairs = [("samples", "network"), ("training", "network"), ("training", "examples")]
  return pairs + ([("held_out", "network")] if inputs.held_out else [])


def measure(stores, inputs):
  """Returns rows (name, value, None, computed on): the median feature distance to the nearest
  training image, of samples and of held-out images, and their ratio.

  Far below 1, samples are copies.
  """
  training = stores["training", "network"]
  label = inputs.network.label.removeprefix("FD-").replace("FID", "Inception")
  rows = []
  for name, title in (("samples", "samples"), ("held_out", "held-out images")):
    if (name, "network") in stores:
      features = stores[name, "network"].spread("features", MOST)
      distance, _ = search(features, training.chunks("features"))
      title = f"nearest training image of {title} ({label})"
      rows.append((title, float(np.median(distance)), None, f"median of {len(features):,}"))
  if len(rows) == 2:
    ratio = rows[0][1] / max(rows[1][1], 1e-12)
    rows.append((f"nearest, samples over held-out ({label})", ratio, None, "1: no copies"))
  return rows


def write_picture(path, stores, inputs, count, batch_size):
  """Writes a picture with a row for each of the first `count` samples.

  A row has the sample, its nearest training image by pixels (with the root of the mean squared
  difference, of 255), and by features (with their distance).
  """
  (batch, *_) = inputs.samples.batches(range(min(count, inputs.samples.count)), batch_size)
  queries = batch["image"]

  def pixels():
    whole = range(inputs.training.count)
    for part in inputs.training.batches(whole, batch_size):
      yield part["image"].reshape(len(part["image"]), -1).astype(np.float32) / 255

  by_pixels, pixel_rows = search(
    queries.reshape(len(queries), -1).astype(np.float32) / 255, pixels()
  )
  features = stores["samples", "network"].read("features", np.arange(len(queries)))
  by_features, feature_rows = search(features, stores["training", "network"].chunks("features"))
  places = stores["training", "examples"].read("row")
  scale = 255 / queries[0].size ** 0.5
  cells, captions = [], []
  for i, query in enumerate(queries):
    cells += [query, *(_image(inputs.training, places[r[i]]) for r in (pixel_rows, feature_rows))]
    captions += ["sample", f"pixels {by_pixels[i] * scale:.1f}", f"features {by_features[i]:.3g}"]
  enlarge = max(1, 96 // queries.shape[1])
  save_grid(np.stack(cells), path, columns=3, captions=captions, scale=enlarge)


def search(queries, chunks):
  """Finds the nearest row to each of the queries [q, D] among all rows of chunks [n, D].

  Returns (distances float64 [q], rows int64 [q]).
  """
  best, rows, start = np.full(len(queries), np.inf), np.zeros(len(queries), np.int64), 0
  for chunk in chunks:
    step = max(1, _BLOCK // len(queries))
    for at in range(0, len(chunk), step):
      block = chunk[at : at + step]
      norms = (queries**2).sum(1)[:, None] + (block**2).sum(1)
      nearest = (norms - 2 * queries @ block.T).argmin(axis=1)
      # The winner's distance anew: of copies the formula above leaves rounding.
      exact = ((queries.astype(np.float64) - block[nearest]) ** 2).sum(axis=1)
      closer = exact < best
      best[closer], rows[closer] = exact[closer], start + at + nearest[closer]
    start += len(chunk)
  return np.sqrt(best), rows


def _image(images, row):
  (batch,) = images.batches(range(row, row + 1), 1)
  return batch["image"][0]
