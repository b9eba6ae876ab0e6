"""Two or more results on the same images: what differs, and whether by more than chance."""
