"""The trained networks as Flax modules, and the image operations inside them.

Modules take keyword hyperparameters. They read no config, data, checkpoint or stage.
"""
