"""Image generation and style transfer with generatively pre-trained Transformers, in JAX."""

__version__ = "0.2.0"
