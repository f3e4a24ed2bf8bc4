"""Weight files are read whole or refused in one line, and no code in them runs."""

import argparse
import os
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from imgtx_jax.errors import UserError
from imgtx_jax.pretrained import state_dict

ARRAYS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b.bias": np.array([0.5, -2], np.float32),
}


@pytest.fixture(scope="session")
def torch():
  return pytest.importorskip("torch", reason="no PyTorch: pip install 'imgtx_jax[convert]'")


def tensors(torch, kind="float32", add=0):
  return {name: torch.from_numpy(x + add).to(getattr(torch, kind)) for name, x in ARRAYS.items()}


def assert_reads(path, wrappers=("model",)):
  found = state_dict.read_file(path, wrappers)
  assert {name: weight.shape for name, weight in found.items()} == {
    name: x.shape for name, x in ARRAYS.items()
  }
  for name, weight in found.items():
    array = weight.read()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, ARRAYS[name])


def assert_refused(path, *words):
  with pytest.raises(UserError) as caught:
    state_dict.read_file(path, ("model", "ema"))
  message = str(caught.value)
  assert "\n" not in message and len(message) < 400
  assert all(word in message for word in words), message


# -- What is read ----------------------------------------------------------------------------------


def test_arrays_in_memory():
  weight = state_dict.in_memory({"x": np.arange(4, dtype=np.float16)})["x"]
  assert weight.shape == (4,) and weight.read().dtype == np.float32


@pytest.mark.parametrize("kind", ["float32", "float16", "float64"])
def test_safetensors(kind, tmp_path):
  safetensors.numpy.save_file(
    {name: x.astype(kind) for name, x in ARRAYS.items()}, tmp_path / "x.safetensors"
  )
  assert_reads(tmp_path / "x.safetensors")


def test_safetensors_in_bfloat16(torch, tmp_path):
  from safetensors.torch import save_file  # imports torch

  save_file(tensors(torch, "bfloat16"), tmp_path / "x.safetensors")
  assert_reads(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_pytorch(kind, torch, tmp_path):
  torch.save(tensors(torch, kind), tmp_path / "x.pt")
  assert_reads(tmp_path / "x.pt")


def test_a_training_checkpoint_is_unwrapped(torch, tmp_path):
  checkpoint = {
    "model": tensors(torch),
    "ema": tensors(torch, add=1),
    "optimizer": {"state": {0: torch.ones(2)}, "param_groups": [{"betas": (0.9, 0.95)}]},
    "steps": 3,
    "args": argparse.Namespace(lr=1e-4, name="GPT-B"),
  }
  torch.save(checkpoint, tmp_path / "x.pt")
  assert_reads(tmp_path / "x.pt", ("module", "model", "ema"))
  with pytest.raises(AssertionError):
    assert_reads(tmp_path / "x.pt", ("ema", "model"))


# -- What is refused -------------------------------------------------------------------------------


class Trap:
  """Pickles as a call of os.mkdir."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_a_file_that_runs_code(torch, tmp_path):
  trap = tmp_path / "owned"
  torch.save({"model": tensors(torch), "more": Trap(str(trap))}, tmp_path / "x.pt")
  assert_refused(tmp_path / "x.pt", "refused", ".mkdir", "could run code")
  assert not trap.exists()
  torch.load(tmp_path / "x.pt", weights_only=False)  # it does bite where nothing is refused
  assert trap.exists()


@pytest.mark.parametrize("cut", [0, 5, 0.5, -30])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file(suffix, cut, tmp_path, request):
  path = tmp_path / f"x.{suffix}"
  if suffix == "pt":
    torch = request.getfixturevalue("torch")
    torch.save(tensors(torch), path)
  else:
    safetensors.numpy.save_file(ARRAYS, path)
  data = path.read_bytes()
  path.write_bytes(data[: int(cut * len(data)) if cut == 0.5 else cut])
  assert_refused(path, "no whole", "fetch it again")


@pytest.mark.parametrize(
  "content, words",
  [
    ([1, 2], "a list"),
    ({"steps": 3, "note": "x"}, "no state dict: note, steps"),
    ({"model": {"a": 1}}, "no state dict: a is"),
  ],
)
def test_a_pytorch_file_of_something_else(content, words, torch, tmp_path):
  torch.save(content, tmp_path / "x.pt")
  assert_refused(tmp_path / "x.pt", words)


@pytest.mark.parametrize(
  "names", [{"a/b.txt": "x"}, {"a/data.pkl": "hi", "a/version": "3", "a/byteorder": "little"}]
)
def test_a_zip_file_that_is_not_pytorchs(names, torch, tmp_path):
  with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
    for name, text in names.items():
      archive.writestr(name, text)
  assert_refused(tmp_path / "x.pt", "no whole PyTorch file")


def test_another_kind_of_file(torch, tmp_path):
  for name, kind in (("x.pt", "PyTorch"), ("x.bin", "PyTorch"), ("x.safetensors", "safetensors")):
    (tmp_path / name).write_bytes(b"GIF89a" * 100)
    assert_refused(tmp_path / name, f"no whole {kind} file")
  assert_refused(tmp_path, "there is no such file")
  assert_refused(tmp_path / "none.pt", "there is no such file")


def test_without_pytorch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "x.pt").write_bytes(b"PK")
  assert_refused(tmp_path / "x.pt", "pip install 'imgtx_jax[convert]'")
