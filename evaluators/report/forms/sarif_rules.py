"""The rules of the SARIF form: a kind of finding each, with what to do about it."""

from collections.abc import Mapping
from typing import Any

from evaluators.verdict.advice import ADVICE, ROWS, Advice

GATE = Advice(
    "every demand on the results was met",
    "Make the model as accurate and as robust as was asked for, or ask for less; a missing figure needs its attack.",
    "A demand on the results was not met.",
)

RULES: Mapping[str, Advice] = {**ADVICE, **ROWS, "gate": GATE}
"""By the name of a check, or the kind of a finding about a row or a gate."""


def rule_id(name: str) -> str:
    """`dgad/order-of-classes`: stable, since code-scanning pages know findings by it."""
    return f"dgad/{name.replace(' ', '-')}"


def descriptor(name: str) -> dict[str, Any]:
    """A rule as SARIF has it."""
    rule = RULES[name]
    return {
        "id": rule_id(name),
        "name": name.title().replace(" ", "").replace("-", ""),
        "shortDescription": {"text": rule.fault},
        "fullDescription": {"text": f"{rule.fault} {rule.action}"},
        "help": {"text": rule.action},
        "defaultConfiguration": {"level": "warning"},
    }
