"""Training losses: pure functions of arrays.

They read no config, data, checkpoint or stage.
"""
