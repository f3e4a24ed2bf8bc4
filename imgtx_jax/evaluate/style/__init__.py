"""`evaluate --metrics style`: style transfer over all pairs of two folders, for the model, simple
baselines and other methods' outputs."""
