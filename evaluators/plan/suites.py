"""SUITES: named lists of attacks. `transfer:ATTACK` means that attack on every surrogate."""

from collections.abc import Sequence

from dgad_tk.common import lookup
from evaluators.attacks import ATTACKS

TRANSFER = "transfer:"
CURVE = "fmn"
"""The attack whose distances a curve is drawn from where no other was asked for."""

SUITES: dict[str, tuple[str, ...]] = {
    "fast": ("fgsm", "pgd"),
    "quick": ("fgsm", "pgd", "autoattack-fast"),
    "paper": ("fgsm", "pgd", "cw2-paper", "autoattack"),
    "full": ("fgsm", "pgd", "cw2", "autoattack", "transfer:fgsm", "transfer:pgd", "transfer:jsma"),
    "transfer": ("transfer:fgsm", "transfer:pgd", "transfer:mim", "transfer:jsma", "transfer:autoattack"),
    "blackbox": ("square", "transfer:fgsm", "transfer:pgd", "art:hopskipjump"),
}


def expand(suites: Sequence[str] = (), attacks: Sequence[str] = (), *, curve: str = "") -> list[str]:
    """Attack names of `--suite` and `--attack` together, each once, in the order given.

    Args:
        curve: a norm that a min-norm attack has to be there for; CURVE joins if none is.

    Raises:
        UserError: an unknown suite or attack.
    """
    names = [name for suite in suites for name in lookup(SUITES, suite, "suite")]
    for attack in attacks:
        lookup(ATTACKS, attack.removeprefix(TRANSFER), "attack")
        names.append(attack)
    if curve and not any(ATTACKS[name].kind == "min-norm" and curve in ATTACKS[name].norms for name in _own(names)):
        names.append(CURVE)
    return list(dict.fromkeys(names))


def _own(names: Sequence[str]) -> list[str]:
    """The names that are not of transfer attacks."""
    return [name for name in names if not name.startswith(TRANSFER)]
