"""SUITES: named lists of attacks. `transfer:ATTACK` means that attack on every surrogate."""

from collections.abc import Sequence

from dgad_tk.common import lookup
from evaluators.attacks import ATTACKS

TRANSFER = "transfer:"

SUITES: dict[str, tuple[str, ...]] = {
    "fast": ("fgsm", "pgd"),
    "quick": ("fgsm", "pgd", "apgd-t"),
    "paper": ("fgsm", "pgd", "cw2-paper", "autoattack"),
    "full": ("fgsm", "pgd", "cw2", "autoattack", "transfer:fgsm", "transfer:pgd", "transfer:jsma"),
    "transfer": ("transfer:fgsm", "transfer:pgd", "transfer:mim", "transfer:jsma", "transfer:autoattack"),
    "blackbox": ("square", "transfer:fgsm", "transfer:pgd", "art:hopskipjump"),
}


def expand(suites: Sequence[str] = (), attacks: Sequence[str] = ()) -> list[str]:
    """Attack names of `--suite` and `--attack` together, each once, in the order given.

    Raises:
        UserError: an unknown suite or attack.
    """
    names = [name for suite in suites for name in lookup(SUITES, suite, "suite")]
    for attack in attacks:
        lookup(ATTACKS, attack.removeprefix(TRANSFER), "attack")
        names.append(attack)
    return list(dict.fromkeys(names))
