"""The losses: pure functions of arrays; no config, no data."""
