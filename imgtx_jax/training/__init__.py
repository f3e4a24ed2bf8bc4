"""Training, whatever the stage: the only loop, its state and optimizer, checkpoints, the work
directory, metrics on disk and the cache of codes. It never names a stage."""
