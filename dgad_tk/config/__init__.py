"""What may be asked of a run: threat model, training, recipes, and how text becomes values."""
