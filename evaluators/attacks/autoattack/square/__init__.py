"""Random search by squares."""
