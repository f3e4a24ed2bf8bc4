"""`python -m imgtx_jax.evaluate`: distances, precision and recall, reconstruction, class accuracy
and nearest neighbours of a model or of two sets of images. Other modes: style/ and audit/."""
