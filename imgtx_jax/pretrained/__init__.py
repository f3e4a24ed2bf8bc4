"""Published networks (VGG16, AlexNet, InceptionV3, EfficientNet-lite0) and readers of weight files.

The networks are pure functions of their weights, which are never trained.
"""
