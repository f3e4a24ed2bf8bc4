"""`evaluate --audit`: which classes are done badly, favoured or dropped, and by what the
discriminator judges; one HTML page."""
