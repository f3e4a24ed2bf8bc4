"""Keeps JAX from trying accelerators that are not here.

JAX tries every one that it has a library for, and the extras "plan" and "plan-gpu" bring libraries
as compilers only: without the device they print pages of warnings before JAX goes on without them.
"""

import os
import sys
from pathlib import Path

import jax

_LIBTPU, _PATH = "libtpu", "TPU_LIBRARY_PATH"


def hide():
  """Has JAX pass over absent accelerators; call it before JAX starts.

  On a machine with TPUs, and where JAX_PLATFORMS says what to use, jax.config.jax_platforms is set
  already: JAX looks for TPUs when it is imported.
  """
  if jax.config.jax_platforms is not None:
    return
  if module := sys.modules.get(_LIBTPU):
    if os.environ.get(_PATH) == module.get_library_path():  # its import has set it
      del os.environ[_PATH]
    sys.modules[_LIBTPU] = None  # importing it raises ImportError
  if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
    # The check is of the versions of NVIDIA's libraries, and prints how it failed.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def show_tpu_compiler():
  """Lets libtpu be found again, for compiling."""
  if _LIBTPU in sys.modules and sys.modules[_LIBTPU] is None:
    del sys.modules[_LIBTPU]
