"""The gates of results, printed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.printing.terminal import say

if TYPE_CHECKING:
    from evaluators.results import Results


def print_gates(judged: "Sequence[Results]") -> None:
    """Print a line for each demand on each model."""
    for results in judged:
        where = f"{results.model.path}: " if len(judged) > 1 else ""
        for gate in results.gates:
            verdict = "passed" if gate.passed else "FAILED"
            say(f"{where}gate {gate.name} {verdict}: {gate.got}, required is {gate.required}")
            if gate.detail:
                say(f"  {gate.detail}", indent=4)
        if results.uncompared:
            say(f"{where}not compared, since the baseline has no answer: {', '.join(results.uncompared)}")
