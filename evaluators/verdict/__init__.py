"""Whether results can be believed, and whether they are good enough."""
