"""Before jax is imported: the CPU as 4 devices, so that tests can compare the parallel modes."""

import getpass
import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# More threads than cores: the collectives of 4 devices would else wait for each other forever.
os.environ["NPROC"] = "16"
flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
os.environ["XLA_FLAGS"] = " ".join([*flags, "--xla_force_host_platform_device_count=4"])

# Compiled programs are kept between runs: a second run of the tests takes a third of the time.
cache = pathlib.Path(tempfile.gettempdir(), f"imgtx_jax-tests-{getpass.getuser()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
