"""Images from a trained model: cached autoregressive decoding of codes, the options of a draw,
their refinement by the discriminator, and the sampler that the commands call."""
