"""How fast and how large a file is."""
