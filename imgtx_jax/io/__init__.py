"""Files: reads and writes images, writes grids of images, and writes files atomically.

It imports nothing of the package but errors.
"""
