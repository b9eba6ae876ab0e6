"""Thresholds on the shares of images that withstood an evaluation: which rows a key means, and what became of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dgad_tk.common import UserError, format_fraction, nearest, parse_fraction
from evaluators.rows import Row
from evaluators.suites import TRANSFER

CLEAN, WORST_CASE = "clean", "worst-case"


@dataclass(frozen=True)
class GateResult:
    """One demand and whether it was met.

    Attributes:
        name: what was looked at: a row, `clean` or `worst-case`; `baseline:` before it where two files were compared.
        passed: the demand was met.
        required, got: both sides of the comparison, in words.
        detail: how sure that is, or why there is nothing to compare.
    """

    name: str
    passed: bool
    required: str
    got: str
    detail: str = ""


def check_keys(least: Mapping[str, Fraction], rows: Sequence[Row]) -> None:
    """See that every key means something with a robust accuracy, before hours of work for it.

    A key is a row's id; `clean`; `worst-case`; an attack, for its rows at every eps; `transfer:ATTACK`, for those on
    every surrogate. `@EPS` behind any but `clean` picks one eps.

    Raises:
        UserError: an unknown key, with the nearest known one, or an attack that has no robust accuracy.
    """
    for key in least:
        found = _rows_of(key, rows)
        if key == CLEAN or _radii_of(key, rows):
            continue
        if not found:
            names = {name for row in rows for name in (row.id, *_names(row)) if row.eps is not None}
            worst = {WORST_CASE} if _radii(rows) else set()
            raise UserError(f"--fail-under: no row is called '{key}'", hint=nearest(key, {CLEAN, *worst, *names}))
        if unbounded := next((row for row in found if row.eps is None), None):
            raise UserError(
                f"--fail-under '{key}': {unbounded.attack} looks for the nearest adversarial image, so it has no "
                "robust accuracy",
                hint="clean, worst-case and attacks inside an eps-ball can be asked for",
            )


def thresholds(least: Mapping[str, Fraction], rows: Sequence[Row], document: Mapping[str, Any]) -> list[GateResult]:
    """A result for every row that a key means, in the order of the keys.

    A row that did not come to its end fails: nothing is known of it. Shares are compared as fractions, never rounded.

    Args:
        least: key to the smallest share of all images that passes.
        rows: of the evaluation.
        document: its results, schema `dgad/results/1`.
    """
    doubt = ["the evaluation is unreliable"] if document["checks"]["verdict"] == "unreliable" else []
    entries = {entry["id"]: entry for entry in document["attacks"]}
    found: list[GateResult] = []
    for key, share in least.items():
        if key == CLEAN:
            found.append(_compared(CLEAN, share, document["clean"]["correct"], document["clean"]["n"], doubt))
        elif radii := _radii_of(key, rows):
            found += [_worst_case(eps, share, rows, document, doubt) for eps in radii]
        else:
            for entry in (entries[row.id] for row in _rows_of(key, rows)):
                if entry["status"] == "done":
                    notes = [*_sure(share, entry["ci95"]), *doubt]
                    found.append(_compared(entry["id"], share, entry["robust"], entry["n"], notes))
                else:
                    found.append(GateResult(entry["id"], False, _at_least(share), entry["status"], entry["reason"]))
    return found


def percent(share: Fraction) -> str:
    """`45%` or `44.96%`, as it was asked for."""
    return f"{float(100 * share):.10g}%"


def _at_least(share: Fraction) -> str:
    return f"at least {percent(share)}"


def _compared(name: str, least: Fraction, right: int, n: int, notes: Sequence[str]) -> GateResult:
    got = f"{right / n:.1%} ({right:,} of {n:,})"
    return GateResult(name, Fraction(right, n) >= least, _at_least(least), got, "; ".join(notes))


def _sure(least: Fraction, interval: Sequence[float]) -> list[str]:
    low, high = interval
    notes = [f"95 % interval {low:.1%} to {high:.1%}"]
    return [*notes, "too few images to be sure"] if low < least < high else notes


def _worst_case(
    eps: float, least: Fraction, rows: Sequence[Row], document: Mapping[str, Any], doubt: Sequence[str]
) -> GateResult:
    """A row that is missing makes the worst case look better than it is. Only transfer rows may be skipped: there may
    be no surrogate that fits, and attacks on the model itself say more."""
    name = f"{WORST_CASE}@{format_fraction(eps)}" if len(_radii(rows)) > 1 else WORST_CASE
    ids = {row.id for row in rows if row.eps == eps}
    missing = [entry for entry in document["attacks"] if entry["id"] in ids and entry["status"] != "done"]
    grave = [entry for entry in missing if (entry["source"], entry["status"]) != ("transfer", "skipped")]
    worst = next((each for each in document["worst_case"] if each["eps"] == eps), None)
    if grave or worst is None:
        first = (grave or missing)[0]
        detail = f"{first['id']}: {first['reason']}"
        return GateResult(name, False, _at_least(least), first["status"], detail)
    without = ["without " + ", ".join(entry["id"] for entry in missing)] if missing else []
    notes = [*_sure(least, worst["ci95"]), *without, *doubt]
    return _compared(name, least, worst["robust"], worst["n"], notes)


def _radii(rows: Iterable[Row]) -> list[float]:
    return list(dict.fromkeys(row.eps for row in rows if row.eps is not None))


def _radii_of(key: str, rows: Sequence[Row]) -> list[float]:
    """The radii whose worst case `key` means; none where it means something else."""
    return [eps for eps in _radii(rows) if _means(key, WORST_CASE, eps)]


def _rows_of(key: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.id == key or any(_means(key, name, row.eps) for name in _names(row))]


def _names(row: Row) -> list[str]:
    """What a row is called besides its id; no eps in it."""
    if row.surrogate is None:
        return [row.attack]
    return [f"{TRANSFER}{row.surrogate.name}:{row.attack}", f"{TRANSFER}{row.attack}"]


def _means(key: str, name: str, eps: float | None) -> bool:
    """`key` is `name`, or `name@EPS` with this eps, however it is written."""
    if key == name or eps is None:
        return key == name
    start, at, radius = key.rpartition("@")
    if not at or start != name:
        return False
    try:
        return format_fraction(parse_fraction(radius, upper=float("inf"))) == format_fraction(eps)
    except UserError:  # no number: a name that holds an @ itself
        return False
