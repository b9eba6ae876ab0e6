"""Attacks as ART attacks, models as ART estimators, and the record of what the deployed runtime answered."""
