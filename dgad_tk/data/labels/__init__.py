"""Which number a class has: lists of names, and datasets whose classes are put in another order."""
