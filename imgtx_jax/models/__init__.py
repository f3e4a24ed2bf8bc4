"""The networks: Flax modules and frozen feature extractors; no config, no data."""
