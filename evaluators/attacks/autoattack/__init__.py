"""AutoAttack: the stages, and the ensembles made of them."""
