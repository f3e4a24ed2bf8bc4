"""The config: every key with its default (defaults.py), its groups (groups.py), and the checks
before anything is written (validation.py). Plain values; models never see it."""
