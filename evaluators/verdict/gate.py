"""Thresholds of `dgad gate --min`: the rows that a key means, and whether they pass."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from dgad_tk.common import UserError, nearest
from dgad_tk.strangers.number_text import format_fraction, parse_fraction
from evaluators.results import Attack, Gate, Interval, Results

CLEAN, WORST_CASE = "clean", "worst-case"


def thresholds(least: Mapping[str, Fraction], results: Results) -> list[Gate]:
    """A gate for every row that a key means, in the order of the keys.

    A key is the id of a row; `clean`; `worst-case`; an attack, for its rows at every eps; or `transfer:ATTACK`, for its
    rows on every surrogate. `@EPS` behind any key but `clean` picks one eps.

    A row that was skipped or failed does not pass. Shares are compared as fractions, never rounded.

    Args:
        least: the smallest share of all images that passes, by key.

    Raises:
        UserError: an unknown key, or an attack without a robust accuracy.
    """
    doubt = ["the evaluation is unreliable"] if results.checks.verdict == "unreliable" else []
    found: list[Gate] = []
    for key, share in least.items():
        if key == CLEAN:
            found.append(_compared(CLEAN, share, results.clean.correct, results.clean.n, doubt))
        elif radii := [eps for eps in _radii(results) if _means(key, WORST_CASE, eps)]:
            found += [_worst_case(eps, share, results, doubt) for eps in radii]
        else:
            found += [_row(row, share, doubt) for row in _rows_of(key, results)]
    return found


def percent(share: Fraction) -> str:
    """`45%` or `44.96%`, as the user wrote it."""
    return f"{float(100 * share):.10g}%"


def _rows_of(key: str, results: Results) -> list[Attack]:
    rows = results.attacks
    found = [row for row in rows if row.id == key or any(_means(key, name, row.eps) for name in row.names)]
    if not found:
        names = {name for row in rows for name in (row.id, *row.names) if row.eps is not None}
        worst = {WORST_CASE} if _radii(results) else set()
        near = nearest(key, {CLEAN, *worst, *names})
        # `autoattack-fast` has nearly its name, and is another attack.
        other = key == "autoattack" and key not in names
        raise UserError(
            f"--min: no row of {results.model.path} is called '{key}'",
            hint="it did not run: dgad attack --attack autoattack" if other else near,
        )
    if unbounded := next((row for row in found if row.eps is None), None):
        raise UserError(
            f"--min '{key}': {unbounded.name} looks for the nearest adversarial image, so it has no robust accuracy",
            hint="clean, worst-case and attacks inside an eps-ball can be asked for",
        )
    return found


def _row(row: Attack, least: Fraction, doubt: Sequence[str]) -> Gate:
    if row.robust is None or row.ci95 is None:
        return Gate(row.id, False, _at_least(least), row.status, row.reason)
    return _compared(row.id, least, row.robust, row.n, [*_sure(least, row.ci95), *doubt])


def _worst_case(eps: float, least: Fraction, results: Results, doubt: Sequence[str]) -> Gate:
    """The gate of the worst case. It fails if a row is missing, which would make the worst case look better than it is.

    Only transfer rows may be skipped: there may be no surrogate that fits, and attacks on the model itself say more.
    """
    name = f"{WORST_CASE}@{format_fraction(eps)}" if len(_radii(results)) > 1 else WORST_CASE
    inside = [row for row in results.attacks if row.eps is not None and row.eps <= eps]
    missing = [row for row in inside if row.status != "done"]
    grave = [row for row in missing if (row.source, row.status) != ("transfer", "skipped")]
    worst = next((each for each in results.worst_case if each.eps == eps), None)
    if first := next(iter(grave or (missing if worst is None else [])), None):
        return Gate(name, False, _at_least(least), first.status, f"{first.id}: {first.reason}")
    if worst is None:
        return Gate(name, False, _at_least(least), "no answer", "no attack inside an eps-ball ran on all images")
    without = ["without " + ", ".join(row.id for row in missing)] if missing else []
    return _compared(name, least, worst.robust, worst.n, [*_sure(least, worst.ci95), *without, *doubt])


def _compared(name: str, least: Fraction, right: int, n: int, notes: Sequence[str]) -> Gate:
    got = f"{right / n:.1%} ({right:,} of {n:,})"
    return Gate(name, Fraction(right, n) >= least, _at_least(least), got, "; ".join(notes))


def _at_least(share: Fraction) -> str:
    return f"at least {percent(share)}"


def _sure(least: Fraction, interval: Interval) -> list[str]:
    low, high = interval
    notes = [f"95 % interval {low:.1%} to {high:.1%}"]
    return [*notes, "too few images to be sure"] if low < least < high else notes


def _radii(results: Results) -> list[float]:
    return list(dict.fromkeys(row.eps for row in results.attacks if row.eps is not None))


def _means(key: str, name: str, eps: float | None) -> bool:
    """Whether `key` is `name`, or `name@EPS` with this eps in any notation."""
    if key == name or eps is None:
        return key == name
    start, at, radius = key.rpartition("@")
    if not at or start != name:
        return False
    try:
        return format_fraction(parse_fraction(radius, upper=float("inf"))) == format_fraction(eps)
    except UserError:  # not a number: the name itself has an @
        return False
