"""Frozen networks of others (VGG16, LPIPS, InceptionV3, EfficientNet-lite0) and the readers of
their weight files. They are arguments of a step, never trained."""
