"""`python -m imgtx_jax.convert`: published weights and data sets into what other commands read."""
