"""Attacks as ART attacks, models as ART estimators, and the record of what the deployed runtime answered."""

from evaluators.evaluate import evaluate
from evaluators.record import Evaluation
from evaluators.rows import Row, Surrogate, plan
from evaluators.suites import SUITES, expand

__all__ = ["SUITES", "Evaluation", "Row", "Surrogate", "evaluate", "expand", "plan"]
