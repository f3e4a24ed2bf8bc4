"""A feature network that costs nothing, and folders of images."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imgtx_jax.evaluate import image_sets, inputs, reference, runner
from imgtx_jax.evaluate.feature_networks import FeatureNetwork
from imgtx_jax.evaluate.metrics_registry import Settings


@pytest.fixture
def make_network():
  """make(**changes): features [B, 6] and logits [B, 5], projections of the means of 4×4 blocks."""

  def make(**changes):
    draw = np.random.default_rng(0)
    params = {
      "features": draw.normal(size=(48, 6)).astype(np.float32),
      "logits": 4 * draw.normal(size=(48, 5)).astype(np.float32),
    }

    def apply(params, images):
      b, h, w, _ = images.shape
      blocks = images.astype(jnp.float32).reshape(b, 4, h // 4, 4, w // 4, 3) / 255
      means = blocks.mean((2, 4)).reshape(b, -1)
      return {
        name: jnp.matmul(means, matrix, precision="highest") for name, matrix in params.items()
      }

    options = dict(name="tiny", label="FD-Tiny", resize="none", weights_sha256="ab" * 32)
    return FeatureNetwork(**(options | dict(params=params, apply=apply) | changes))

  return make


@pytest.fixture
def folders(tmp_path, smooth_images):
  """(samples, reference): folders of 23 and 31 images of 16×16."""
  found = []
  for name, count, seed in (("samples", 23, 1), ("reference", 31, 2)):
    folder = tmp_path / name
    folder.mkdir()
    for i, image in enumerate(smooth_images(count, 16, seed)):
      Image.fromarray(image).save(folder / f"{i:03}.png")
    found.append(folder)
  return tuple(found)


@pytest.fixture
def settings():
  """Of metrics on a few images."""
  return Settings(kid_subset_size=10, kid_subsets=5, splits=2)


@pytest.fixture
def evaluate(tmp_path, settings, make_network):
  """evaluate(samples, reference, out="out", …) of two paths: what Evaluator.run gives."""

  def run(samples, compared, *, out="out", batch_size=8, network=None, report=None, **options):
    network = network or make_network()
    images = image_sets.open_files(samples)
    widths = inputs.widths(network, images.size)
    compared = reference.open_reference(str(compared), network, widths) if compared else None
    found = inputs.EvaluationInputs(network, widths, samples=images, reference=compared)
    folders = dict(out=tmp_path / out, shared=tmp_path / out / "references")
    evaluator = runner.Evaluator(network, settings, batch_size=batch_size, report=report, **folders)
    return evaluator.run(found, **options)

  return run


@pytest.fixture
def small_shards(monkeypatch):
  """Five images a shard."""
  from imgtx_jax.evaluate import feature_store

  monkeypatch.setattr(feature_store, "SHARD", 5)
