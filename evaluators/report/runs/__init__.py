"""A training run as a page: what its folder says, what differs from the defaults, curves, pictures."""
