"""The config: every key with its default (defaults.py), its groups (groups.py), and what is refused
before anything is written (validation.py). Plain values; models never see it."""
