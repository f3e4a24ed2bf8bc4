"""Readers of published weights: each gives plain trees of float32 NumPy arrays."""
