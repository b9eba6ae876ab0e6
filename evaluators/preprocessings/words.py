"""What a finding says, in sentences that promise no more than the images tell."""

from collections.abc import Iterator, Sequence

from dgad_tk.answers.doubts import too_few
from evaluators.preprocessings.finding import Finding, Row
from evaluators.preprocessings.table import COLOURS, PREPROCESSINGS

MOST_NAMES = 4
"""Rows that cannot be told apart and are named; the table above marks all of them."""


def name_of(row: Row) -> str:
    """The row of the table, and the channel order where it is not the usual one of that row."""
    name, own = row.candidate.name, row.candidate.interface
    usual = PREPROCESSINGS[name].interface.channel_order
    return name if own.channel_order == usual else f"{name}, {own.channel_order.upper()}"


def sentences(finding: Finding, *, channels: int, own: bool, eight_bits: bool) -> list[str]:
    """What to say below the table.

    Args:
        channels: of the images.
        own: whether the file carries a dgad record, and so was only tried as it is.
        eight_bits: whether its input is 8-bit numbers.
    """
    first = finding.rows[0]
    told = ["the file carries a dgad record: it takes images as they are and normalises them itself"] if own else []
    if eight_bits and len(finding.rows) <= 2:  # its graph does not say what other numbers pixels could become
        what = "nothing but the order of the channels can differ" if channels == COLOURS else "nothing can differ"
        told.append(f"the file takes 8-bit numbers and is given grey levels: {what}")
    if finding.verdict == "none":
        return [*told, *_nothing(finding, channels)]
    n, share = f"{first.n:,}", f"{first.accuracy:.1%}, 95% interval {first.ci95[0]:.1%} to {first.ci95[1]:.1%}"
    right = f"{first.correct:,} of {n} images are right ({share})"
    names = [f"'{name_of(row)}'" for row in finding.leading]
    if finding.verdict == "tied":
        why = "they get the same answers" if finding.alike else "none is right on surely fewer images than the first"
        more = "" if finding.alike else "; more images may tell (--limit)"
        told.append(f"cannot tell between {_listed(names)}: of {n} images, {why}{more}")
        told.append(f"with {names[0]} {right}")
        told.append("attacks can come out differently with them: where it is known what the file wants, take that")
    elif own:
        told.append(right)
    else:
        told.append(f"{names[0]} fits best: {right}, surely more than with any other")
    orders = {str(row.order.order.tolist()): row for row in reversed(finding.leading) if row.order is not None}
    told += [f"'{name_of(row)}': {row.order}" for row in reversed(orders.values())]
    if first.order is not None and not first.order.classes:
        told.append("no --classes says that order: a class of the images is none of the file's outputs")
    if finding.low and not own:
        told.append(
            f"that is more than guessing ({finding.guessing:.1%}) and still little: if the file is known to do better, "
            "look at the size and the crop of the images, whether their rows and columns are exchanged, and the classes"
        )
    return told


def _nothing(finding: Finding, channels: int) -> Iterator[str]:
    first = finding.rows[0]
    how_many = f"of {len(finding.rows)} preprocessings the best" if len(finding.rows) > 1 else "it"
    best = (
        f"{how_many}, '{name_of(first)}', gets {first.correct:,} of {first.n:,} images right "
        f"({first.accuracy:.1%}), and guessing gets {finding.guessing:.1%}"
    )
    if finding.guessing == 1:
        yield f"images of one class alone tell no preprocessing: {best}"
        return
    if too_few(first.correct, first.n, finding.guessing):
        yield f"too few images to tell: {best}"
        return
    yield f"no preprocessing fits: {best}"
    inverted = ", grey levels turned round (white on black)" if channels == 1 else ""
    yield (
        "what else may be wrong: other classes than these, or labels that are not theirs; an order of classes that so "
        "few images do not tell; another task; another size or crop of the images, or rows and columns exchanged"
        f"{inverted}; a file that was not trained"
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES + 1:
        names = [*names[:MOST_NAMES], f"{len(names) - MOST_NAMES} more"]
    return ", ".join(names[:-1]) + f" and {names[-1]}"
