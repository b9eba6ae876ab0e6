"""Steps onto the nearest linearised boundary."""
