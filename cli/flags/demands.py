"""What is demanded of results: thresholds, and an earlier run that they must not fall behind."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgad_tk.common import UserError
from dgad_tk.strangers.number_text import NotANumberError, exact

if TYPE_CHECKING:
    from evaluators.results import Results

Least = Annotated[
    list[str] | None,
    typer.Option(
        "--min",
        metavar="KEY=RATE",
        help="The least that passes, for clean, worst-case or an attack: pgd=45%. Repeatable.",
    ),
]
Baseline = Annotated[Path | None, typer.Option(help="Results of an earlier run, below which robustness must not drop.")]
MaxDrop = Annotated[
    str | None, typer.Option(help="Drop below the baseline that is allowed: 1%. [what chance explains]")
]


def judged(
    paths: Sequence[Path], least: Sequence[str] | None, baseline: Path | None, max_drop: str | None
) -> "list[Results]":
    """The results in `paths`, with a gate for each demand. Without demands, they keep those they came with.

    Raises:
        UserError: a flag cannot be read, or results cannot be read or compared.
    """
    shares = _shares(least or [])
    if max_drop is not None and baseline is None:
        raise UserError("--max-drop is given, but no --baseline to drop from", hint="--baseline old/results.json")
    drop = rate_of(max_drop, "--max-drop") if max_drop is not None else None

    from evaluators.results import read_results
    from evaluators.verdict.gate import thresholds

    found = [read_results(path) for path in paths]
    if shares or baseline is not None:
        found = [each.model_copy(update={"gates": thresholds(shares, each), "uncompared": []}) for each in found]
    if baseline is not None:
        from evaluators.verdict.baseline import compare, uncompared  # numpy, which `--min` can do without
        from evaluators.verdict.records import read_record

        old = read_record(baseline)
        for number, (each, path) in enumerate(zip(found, paths, strict=True)):
            new = read_record(path)
            gates = [*each.gates, *compare(new, old, drop)]
            found[number] = each.model_copy(update={"gates": gates, "uncompared": uncompared(new, old)})
    return found


def _shares(given: Sequence[str]) -> dict[str, Fraction]:
    """`KEY=RATE` of each `--min`: row or share to the least that passes, a fraction of all images."""
    shares: dict[str, Fraction] = {}
    for each in given:
        key, equals, rate = each.rpartition("=")
        if not (key and equals):
            raise UserError(f"--min needs KEY=RATE, got '{each}'", hint="for example --min pgd=45%")
        if key in shares:
            raise UserError(f"--min is given twice for '{key}'", hint="give each key once")
        shares[key] = rate_of(rate, f"--min {key}")
    return shares


def rate_of(text: str, flag: str) -> Fraction:
    """`45%` or `0.45` as an exact fraction of 1.

    Raises:
        UserError: no rate, or a bare number that may be meant as per cent.
    """
    wrong, hint = f"{flag} must be a rate such as 45% or 0.45, got '{text}'", "write 45% or 0.45"
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*(%?)\s*", text, re.ASCII)
    if found is None:
        raise UserError(wrong, hint=hint)
    number, sign = found.groups()
    try:
        rate = exact(number) / (100 if sign else 1)
    except NotANumberError as error:  # of a zero in front
        raise UserError(wrong, hint=error.hint) from None
    if not sign and (rate > 1 or number == "1"):
        raise UserError(wrong, hint=f"did you mean {number}%?")
    if rate > 1:
        raise UserError(f"{flag} must be at most 100%, got '{text}'", hint=hint)
    return rate
