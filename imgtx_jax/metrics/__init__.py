"""Figures of quality; pure functions."""
