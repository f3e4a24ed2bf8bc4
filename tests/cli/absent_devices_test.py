import os
import sys
import types

import pytest

from imgtx_jax.cli import absent_devices


@pytest.fixture
def libtpu(monkeypatch):
  """libtpu as it is after its import, which sets TPU_LIBRARY_PATH."""
  module = types.SimpleNamespace(get_library_path=lambda: "/libtpu.so")
  monkeypatch.setitem(sys.modules, "libtpu", module)
  monkeypatch.setenv("TPU_LIBRARY_PATH", "/libtpu.so")
  monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "")
  return module


def use(monkeypatch, platforms):
  config = types.SimpleNamespace(jax_platforms=platforms)
  monkeypatch.setattr(absent_devices, "jax", types.SimpleNamespace(config=config))


def test_a_compiler_without_its_device_is_not_tried(libtpu, monkeypatch):
  use(monkeypatch, None)
  absent_devices.hide()
  assert sys.modules["libtpu"] is None and "TPU_LIBRARY_PATH" not in os.environ
  with pytest.raises(ImportError):
    import libtpu as _  # noqa: F401
  absent_devices.show_tpu_compiler()
  assert "libtpu" not in sys.modules


@pytest.mark.parametrize("platforms", ["cpu", "tpu,cpu", ""])
def test_what_was_asked_for_is_tried(libtpu, monkeypatch, platforms):
  use(monkeypatch, platforms)
  absent_devices.hide()
  absent_devices.show_tpu_compiler()
  assert sys.modules["libtpu"] is libtpu and os.environ["TPU_LIBRARY_PATH"] == "/libtpu.so"


def test_a_path_of_the_users_own_stays(libtpu, monkeypatch):
  use(monkeypatch, None)
  monkeypatch.setenv("TPU_LIBRARY_PATH", "/own.so")
  absent_devices.hide()
  assert os.environ["TPU_LIBRARY_PATH"] == "/own.so"
