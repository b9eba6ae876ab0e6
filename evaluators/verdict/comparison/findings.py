"""What a comparison found, in sentences, and what to know before its figures are read."""

from collections.abc import Sequence
from pathlib import PurePath
from shlex import quote
from typing import Literal

from dgad_tk.strangers.names import shown
from evaluators.verdict.comparison.document import ClassDifference, Compared
from evaluators.verdict.paired import CHANCE, Paired

LONGEST = 48
"""Characters of a model's name in a sentence."""
MINUS = "\N{MINUS SIGN}"
NOUNS = {"accurate": "accuracy", "robust": "robustness"}
"""What a model is to what it has."""


def finding(found: Paired, what: str, where: str, names: tuple[str, str], *, real: bool) -> str:
    """What is found, as a clause that `evidence` goes on from. What chance can explain is no finding.

    Args:
        found: the difference, the reference being the second of the two.
        what: `accurate` or `robust`.
        where: such as `on clean images`.
        names: of the reference and of what is compared with it.
        real: the difference is more than chance.
    """
    if not real:
        return f"No difference shown in {NOUNS[what]} {where}"
    reference, other = names
    size, way = decimal(abs(found.difference)), "more" if found.difference > 0 else "less"
    unit = "point" if size == "1.0" else "points"
    return f"{other} is {size} {unit} {way} {what} than {reference} {where} ({_ends(found)})"


def evidence(found: Paired, adjusted: float, tests: int, name: str) -> str:
    """How sure that is, as a clause.

    Args:
        adjusted: p, adjusted for `tests` tests.
        name: of what is compared with the reference.
    """
    p, differ = p_text(found.p), found.only_first + found.only_second
    equals = f"p < {p[1:]}" if p.startswith("<") else f"p = {p}"
    after = f"{p_text(adjusted)} adjusted for {tests} tests"
    if adjusted < CHANCE:
        split = f"it lost {found.only_second:,} and won {found.only_first:,} of {count(found.n, 'image')}"
        return f"{split}, more than chance explains, {equals}{f', and {after}' if tests > 1 else ''}"
    size, of = (
        signed(found.difference),
        f"{differ:,} of {count(found.n, 'image')} {'differs' if differ == 1 else 'differ'}",
    )
    unit = "point" if size[1:] == "1.0" else "points"
    return f"{name} {size} {unit} ({_ends(found)}), {of}, {equals}{f', but {after}' if found.p < CHANCE else ''}"


def _ends(found: Paired) -> str:
    return " to ".join(map(signed, found.ci95))


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


def signed(share: float) -> str:
    """The same with its sign, for sentences: `+0.6`, or `-0.4` with a minus sign."""
    text = decimal(share)
    return text if float(text) == 0 else f"{MINUS}{text[1:]}" if text.startswith("-") else f"+{text}"


def doubt(each: Compared) -> str:
    """What the checks of a result doubt, as a clause."""
    why = "; ".join(dict.fromkeys(found.detail for found in each.doubts))
    return f"the checks of {each.name} found something to doubt ({each.verdict}): {why}"


def lowest(classes: Sequence[ClassDifference], key: Literal["right", "reference_right"]) -> tuple[list[str], float]:
    """Names of the classes with the smallest share of right images, and that share.

    Args:
        key: `right` for this result, `reference_right` for the reference.
    """
    shares = [getattr(each, key) / each.n for each in classes]
    least = min(shares)
    return [each.class_ for each, share in zip(classes, shares, strict=True) if share == least], least


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


def notes(results: Sequence[Compared], n: int, surrogates: Sequence[str], quantised: Sequence[Compared]) -> list[str]:
    """What to know before figures of `n` images are read.

    Args:
        quantised: those that are INT8, and that no attack saw past the rounding of.
        surrogates: names of those that transfer rows were made on.
    """
    found = []
    if more := [each for each in results if each.n > n]:
        saw = ", ".join(f"{each.name} saw {count(each.n, 'image')}" for each in more)
        found.append(f"{saw}: everything here is of the {n:,} that all saw")
    found += [doubt(each) for each in results if each.verdict != "high"]
    if quantised:
        one = len(quantised) == 1
        names, it = ", ".join(each.name for each in quantised), "it" if one else "they"
        found.append(
            f"INT8 hides gradients and small gains, so {names} {'looks' if one else 'look'} a little more robust than "
            f"{it} {'is' if one else 'are'}: attack {'it' if one else 'them'} by way of the float file "
            f"too: dgad attack --model {shown(quote(quantised[0].path))} --attack autoattack-max --sibling FLOAT.onnx"
        )
    for number, each in enumerate(results):
        if twin := next((other for other in results[:number] if other.sha256 == each.sha256), None):
            found.append(f"{twin.name} and {each.name} are the same file: what differs is how it was attacked")
    if len({each.seed for each in results}) > 1:
        found.append("the seeds differ: " + ", ".join(f"{each.name} {each.seed}" for each in results))
    if surrogates:
        found.append(f"surrogates are told apart by their names only: {', '.join(map(shown, surrogates))}")
    return found
