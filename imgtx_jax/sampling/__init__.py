"""Sampling: cached decoding of codes, options, refinement by the discriminator, labels, Sampler.

Commands call Sampler; stages use the rest.
"""
