"""`python -m imgtx_jax.plan`: memory, arithmetic, communication and days of a training on hardware
that is not here, by compiling its step ahead of time."""
