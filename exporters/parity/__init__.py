"""Whether a file answers as its source does."""
