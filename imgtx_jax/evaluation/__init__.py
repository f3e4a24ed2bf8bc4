"""Measuring a model or a set of images: what is compared, features kept on disk, and figures."""
