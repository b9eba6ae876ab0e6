"""ART's own attacks."""
