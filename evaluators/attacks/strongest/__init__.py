"""The strongest ensemble: straight-through gradients, siblings and plateaus beside standard AutoAttack."""
