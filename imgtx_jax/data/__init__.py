"""Input: sources of images, transforms on host and device, and the Grain pipeline."""
