"""Gradient ascent on images: the inner maximisation, its losses and norms, and what makes it fast."""
