"""What a comparison found, in sentences, and what to know before its figures are read."""

from collections.abc import Sequence
from pathlib import PurePath

from dgad_tk.strangers.names import shown
from evaluators.verdict.comparison.document import Compared
from evaluators.verdict.paired import CHANCE, Paired

LONGEST = 48
"""Characters of a model's name in a sentence."""


def finding(found: Paired, what: str, where: str, names: tuple[str, str]) -> str:
    """A difference as a clause.

    Args:
        found: the difference, the reference being the second of the two.
        what: `accurate` or `robust`.
        where: such as `on clean images`.
        names: of the reference and of what is compared with it.
    """
    reference, other = names
    low, high = (decimal(end) for end in found.ci95)
    if found.only_first == found.only_second:
        return f"{other} is as {what} as {reference} {where} ({low} to {high} points)"
    size, way = decimal(abs(found.difference)), "more" if found.difference > 0 else "less"
    unit = "point" if size == "1.0" else "points"
    return f"{other} is {size} {unit} {way} {what} than {reference} {where} ({low} to {high})"


def evidence(found: Paired, adjusted: float, tests: int) -> str:
    """How sure a difference is, as a clause.

    Args:
        adjusted: p, adjusted for `tests` tests.
    """
    split = f"it lost {found.only_second:,} and won {found.only_first:,} of {count(found.n, 'image')}"
    if found.only_first == found.only_second:
        return split
    p = p_text(found.p)
    equals = f"p < {p[1:]}" if p.startswith("<") else f"p = {p}"
    after = f"{p_text(adjusted)} adjusted for {tests} tests"
    if adjusted < CHANCE:
        return f"{split}, more than chance explains, {equals}{f', and {after}' if tests > 1 else ''}"
    if found.p < CHANCE:
        return f"{split}, which chance can explain: {equals}, but {after}"
    return f"{split}, which chance can explain, {equals}"


def p_text(p: float) -> str:
    """`0.11`, `0.0031`, `<0.0001` or `1`."""
    if p < 1e-4:
        return "<0.0001"
    text = f"{p:.2f}" if p >= 0.0995 else f"{p:.3f}" if p >= 0.00995 else f"{p:.4f}"
    return "1" if text == "1.00" else text


def decimal(share: float) -> str:
    """A difference of shares in points: `-1.2`; `0.03` where one decimal would be nothing; `0.0` for none."""
    points = 100 * share
    text = f"{points:.1f}" if abs(points) >= 0.05 or abs(points) < 1e-9 else f"{points:.2f}"
    return text.lstrip("-") if float(text) == 0 else text


def count(number: int, noun: str) -> str:
    """`1,000 images` or `1 image`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_names(paths: Sequence[str]) -> list[str]:
    """Each path's last part; with as many folders as tell it from the others, or with its number if none does.

    Long ones are cut at their beginning, and get their number too.
    """
    parts = [PurePath(path).parts or (path,) for path in paths]
    names = []
    for number, own in enumerate(parts, 1):
        others = [each for at, each in enumerate(parts, 1) if at != number]
        length = next((k for k in range(1, len(own) + 1) if all(own[-k:] != each[-k:] for each in others)), 0)
        name = shown(str(PurePath(*own[-(length or 1) :])))
        if len(name) > LONGEST:
            name, length = f"...{name[3 - LONGEST :]}", 0
        names.append(name if length else f"{name} [{number}]")
    return names


def notes(results: Sequence[Compared], n: int, surrogates: Sequence[str]) -> list[str]:
    """What to know before figures of `n` images are read.

    Args:
        surrogates: names of those that transfer rows were made on.
    """
    found = []
    if more := [each for each in results if each.n > n]:
        saw = ", ".join(f"{each.name} saw {count(each.n, 'image')}" for each in more)
        found.append(f"{saw}: everything here is of the {n:,} that all saw")
    for each in results:
        if each.verdict != "high":
            why = "; ".join(dict.fromkeys(doubt.detail for doubt in each.doubts))
            found.append(f"the evaluation of {each.name} is {each.verdict}: {why}")
    for number, each in enumerate(results):
        if twin := next((other for other in results[:number] if other.sha256 == each.sha256), None):
            found.append(f"{twin.name} and {each.name} are the same file: what differs is how it was attacked")
    if len({each.seed for each in results}) > 1:
        found.append("the seeds differ: " + ", ".join(f"{each.name} {each.seed}" for each in results))
    if surrogates:
        found.append(f"surrogates are told apart by their names only: {', '.join(map(shown, surrogates))}")
    return found
