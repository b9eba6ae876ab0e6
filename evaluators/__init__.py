"""Attacks as ART attacks, models as ART estimators, and the record of what the deployed runtime answered.

Most of this needs torch, which takes seconds to import, and `dgad gate` needs none of it: names are imported when they
are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.evaluate import evaluate
    from evaluators.record import Evaluation
    from evaluators.rows import Row, Surrogate, plan
    from evaluators.suites import SUITES, expand

__all__ = ["SUITES", "Evaluation", "Row", "Surrogate", "evaluate", "expand", "plan"]

_MODULES = {
    "SUITES": "suites",
    "Evaluation": "record",
    "Row": "rows",
    "Surrogate": "rows",
    "evaluate": "evaluate",
    "expand": "suites",
    "plan": "rows",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
