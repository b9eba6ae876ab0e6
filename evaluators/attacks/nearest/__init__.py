"""Minimum-norm attacks by gradients: each image's nearest adversarial image in one run of fixed length."""
