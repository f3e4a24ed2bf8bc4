"""Style transfer with a trained style stage: images of any size, tiles, folders, colour, masks.

Commands call load_stylizer, StyleRenderer and batch_jobs.
"""
