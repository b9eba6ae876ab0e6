"""PGD that sets its own step size."""
