"""Input data: sources of images, transforms on host and device, the Grain pipeline, cached codes.

Batches are uint8 images or int32 codes, with int32 labels.
"""
