"""State dicts in what training tools wrap them in: a table of wrappers, and what is taken."""

import numpy as np
import pytest
import safetensors.numpy

from imgtx_jax.errors import UserError
from imgtx_jax.pretrained import state_dict

ARRAYS = {
  "layers.0.w": np.ones((2, 3), np.float32),
  "norm.weight": np.arange(3, dtype=np.float32),
  "head": np.full(4, 7, np.float32),
}
OTHER = {name: x + 100 for name, x in ARRAYS.items()}


def under(prefix, arrays=ARRAYS):
  return {f"{prefix}{name}": x for name, x in arrays.items()}


FLAT = {
  "nothing": (ARRAYS, None),
  "a compiled module": (under("_orig_mod."), "_orig_mod.*"),
  "data parallelism": (under("module."), "module.*"),
  "both": (under("module._orig_mod."), "module.* → _orig_mod.*"),
  "a Lightning module": (under("model."), "model.*"),
  "weights and their average": (under("model.") | under("ema.", OTHER), "model.*"),
  "an average's module": (under("ema_model.module."), "ema_model.* → module.*"),
}
NESTED = {
  "a trainer's file": ({"model": ARRAYS, "optimizer": {"x": 1}, "epoch": 3}, "model"),
  "a Lightning file": ({"state_dict": under("model."), "epoch": 3}, "state_dict → model.*"),
  "weights and their average": ({"ema": OTHER, "model": ARRAYS}, "model"),
  "dicts in dicts": ({"state_dict": {"module": under("_orig_mod.")}}, "state_dict → module"),
}


def check(path, words):
  said = []
  found = state_dict.read_file(path, ("model", "ema"), say=said.append)
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name].read(), array)
  assert (not said) if words is None else (words in said[0] and "(3 arrays)" in said[0]), said


@pytest.mark.parametrize("case", FLAT)
def test_prefixes_of_names(case, tmp_path):
  arrays, words = FLAT[case]
  safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
  check(tmp_path / "x.safetensors", words)


@pytest.mark.parametrize("case", NESTED)
def test_dicts_in_a_file(case, tmp_path):
  torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'imgtx_jax[convert]'")

  def tensors(x):
    if isinstance(x, dict):
      return {name: tensors(value) for name, value in x.items()}
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x

  content, words = NESTED[case]
  torch.save(tensors(content), tmp_path / "x.pt")
  check(tmp_path / "x.pt", words)


def test_the_average_is_taken_where_it_is_the_better(tmp_path):
  safetensors.numpy.save_file(under("model.") | under("ema.", OTHER), tmp_path / "x.safetensors")
  found = state_dict.read_file(tmp_path / "x.safetensors", ("ema", "model"))
  np.testing.assert_array_equal(found["head"].read(), OTHER["head"])


def test_names_that_only_begin_like_a_wrapper_stay(tmp_path):
  arrays = ARRAYS | {"model.x": np.ones(2, np.float32)}
  safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
  assert state_dict.read_file(tmp_path / "x.safetensors", ()).keys() == arrays.keys()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
  safetensors.numpy.save_file({"x": np.full(3, value, np.float32)}, tmp_path / "x.safetensors")
  weight = state_dict.read_file(tmp_path / "x.safetensors", ())["x"]
  with pytest.raises(UserError, match="x holds NaN or infinity"):
    weight.read()
