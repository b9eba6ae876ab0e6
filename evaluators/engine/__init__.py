"""Attacks on chunks of images, kept, resumed and counted."""
