"""`python -m imgtx_jax.benchmark`: speed of training, sampling, input and checkpoints, as JSON."""
