"""Training a grown model: param groups by the law, and the source's optimizer state grown along the same axes."""
