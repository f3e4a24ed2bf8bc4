"""How much memory this process has used."""

import resource

import jax


def peak_memory_bytes():
  """The most memory used so far: of the first accelerator, or of this process on a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return int(stats["peak_bytes_in_use"])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
