"""What all commands share: running them, flags and their errors, paths, stop signals, progress.

Only this package and the commands read flags.
"""
