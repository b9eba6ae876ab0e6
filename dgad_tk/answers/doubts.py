"""What answers to labelled images tell beyond their average: another order of classes, one answer for everything.

An accuracy above chance is easily taken for sound. Two classes of ten that have changed places leave 80 % right, and
one answer for all is 95 % right where 95 % of the images are of one class. Each doubt here needs enough images and a
gain far above noise, so that a model which is merely not good raises none.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]
NONE = -1
"""The answer of a model whose logits are not finite: no class at all."""

NOWHERE = -2
"""What an order gives for a label that it has no class for; never an answer."""

CHANCE = 0.005
"""Level of the sign test: how often an order that is no better may seem better."""
EXPLAINED = 1 / 3
"""Share of the errors on the classes concerned that another order has to put right, less what it spoils."""
MOST_NAMED = 10
MOST_PAIRS = 2**22
"""Pairs of a label and an answer that an assignment is looked for among: 2,000 classes take seconds and 32 MB."""


@dataclass(frozen=True)
class OtherOrder:
    """A one-to-one relabelling of the answers that makes most errors of the classes it concerns right.

    Attributes:
        before, after: images of all that are right as they are, and with this order.
        n: images.
        reason: what explains it, or the classes that take each other's places; a clause.
    """

    before: int
    after: int
    n: int
    reason: str

    def __str__(self) -> str:
        return (
            f"with its classes in another order {self.after:,} of {self.n:,} images are right instead of "
            f"{self.before:,}: {self.reason}"
        )


def other_order(labels: Classes, answers: Classes, names: Sequence[str]) -> OtherOrder | None:
    """The order of classes in which a model seems to answer, where it is not that of the labels.

    Orders that have a reason come first: one too high, as behind a class for the background, or one too low; names
    sorted as text where the model counts the numbers in them; both. They need one image per class. Any other order is
    found by the best assignment of answers to labels on one half of the images, and has to prove itself on the other.
    It is not looked for among more than 2,000 classes.

    Args:
        labels: int64 `(N,)`, below `len(names)`.
        answers: int64 `(N,)`; may hold classes that no label has, or NONE.
        names: of the classes, in the order of the labels.
    """
    known = int(max(answers.max(initial=NONE) + 1, len(names)))
    found = _found_order(labels, answers, len(names), known)
    told = (
        [OtherOrder(*_counts(labels, answers, found), _moves(found, names))]
        if (found != np.arange(len(names))).any()
        else []
    )
    for order, reason in _reasonable_orders(names, known):
        if _explains(labels, answers, order):
            told.append(OtherOrder(*_counts(labels, answers, order), reason))
    # An order with a reason is believed before one without, unless it explains less.
    return max(reversed(told), key=lambda each: each.after, default=None)


def _counts(labels: Classes, answers: Classes, order: Classes) -> tuple[int, int, int]:
    return int((answers == labels).sum()), int((answers == order[labels]).sum()), len(labels)


def _reasonable_orders(names: Sequence[str], known: int) -> Iterator[tuple[Classes, str]]:
    """Orders that happen, label to answer, NOWHERE for a label that has none; and what one would say of each."""
    here = np.arange(len(names))
    orders = [(here, "")]
    for key, what in ((_counted, "counts the numbers in the names"), (str.casefold, "ignores capitals")):
        rank = np.argsort(sorted(range(len(names)), key=lambda k: key(names[k])))
        if (moved := np.flatnonzero(rank != here)).size:
            k = int(moved[0])
            example = f"'{names[k]}' is its class {rank[k]}, sorted as text it is {k}"
            orders.append((rank, f"the model's order {what} ({example})"))
    for order, reason in orders:
        if reason:
            yield order, reason
        for shift, said in (
            (1, "its answers are one too high, as if a class such as 'background' stood in front"),
            (-1, "its answers are one too low, as if the first class were missing"),
        ):
            shifted = order + shift
            inside = (shifted >= 0) & (shifted < known)
            yield np.where(inside, shifted, NOWHERE), "; ".join(filter(None, (said, reason)))


def _counted(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts the numbers in names by their size."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]


def _explains(labels: Classes, answers: Classes, order: Classes) -> bool:
    about = (order[labels] != labels) & (order[labels] != NOWHERE)
    right, spoilt = about & (answers == order[labels]), about & (answers == labels)
    return _convincing(int(right.sum()), int(spoilt.sum()), int(about.sum()))


def _convincing(right: int, spoilt: int, n: int) -> bool:
    """Whether an order that puts `right` of `n` images right and spoils so many others is meant, and no accident."""
    return right - spoilt >= EXPLAINED * (n - spoilt) and right >= 2 * spoilt and outnumbers(right, spoilt)


def outnumbers(gained: int, lost: int) -> bool:
    """Whether more images were gained than lost, of as many that changed, by no accident (a one-sided sign test)."""
    if gained <= lost:
        return False
    from scipy.stats import binom  # a second to import, and most models are beyond doubt

    return bool(binom.sf(gained - 1, gained + lost, 0.5) <= CHANCE)


def _found_order(labels: Classes, answers: Classes, k: int, known: int) -> Classes:
    """The best assignment, label to answer `(K,)`, of the labels that move with good reason; the others stay."""
    kept = np.arange(k)
    if (answers == labels).all() or k * known > MOST_PAIRS:
        return kept
    half = np.zeros(len(labels), dtype=np.int64)  # every other image of a class, in the order they come in
    for label in range(k):
        of_label = np.flatnonzero(labels == label)
        half[of_label] = np.arange(len(of_label)) % 2
    # What an order gains on the images that it was chosen by proves nothing.
    orders = [_assigned(labels[half != side], answers[half != side], k, known) for side in (0, 1)]
    wanted = np.where(half == 0, orders[0][labels], orders[1][labels])
    whole, found = _assigned(labels, answers, k, known), kept.copy()
    for group in _groups(whole):
        rows = np.isin(labels, group)
        right = rows & (answers == wanted) & (answers != labels)
        spoilt = rows & (answers == labels) & (answers != wanted)
        if _convincing(int(right.sum()), int(spoilt.sum()), int(rows.sum())):
            found[group] = whole[group]
    return found


def _assigned(labels: Classes, answers: Classes, k: int, known: int) -> Classes:
    """The one-to-one order, label to answer `(K,)`, in which most images are right; as it is where nothing decides."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((k, known), dtype=np.int64)
    some = answers != NONE
    np.add.at(counts, (labels[some], answers[some]), 1)
    # A class that stays counts a little more, less than one image in all.
    worth = counts * (k + 1) + np.eye(k, known, dtype=np.int64)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    order = np.arange(k)
    order[rows] = columns
    return order


def _groups(order: Classes) -> list[Classes]:
    """Classes that take each other's places: what one of them moves to is the next one's."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    moved = np.flatnonzero(order != np.arange(len(order)))
    inside = moved[order[moved] < len(order)]
    graph = coo_array((np.ones(len(inside)), (inside, order[inside])), shape=(len(order), len(order)))
    _, component = connected_components(graph, directed=False)
    return [moved[component[moved] == each] for each in np.unique(component[moved])]


def _moves(order: Classes, names: Sequence[str]) -> str:
    def name(k: int) -> str:
        return f"'{names[k]}'" if k < len(names) else f"class {k}"

    moved = {k: j for k, j in enumerate(order.tolist()) if k != j}
    told = []
    for k, j in moved.items():
        if moved.get(j) != k:
            told.append(f"{name(k)} is answered {name(j)}")
        elif k < j:
            told.append(f"{name(k)} and {name(j)} have changed places")
    more = f", and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    return ", ".join(told[:MOST_NAMED]) + more


def one_answer(labels: Classes, answers: Classes, names: Sequence[str]) -> str:
    """A sentence where a model does no better than one answer for everything would; else empty.

    That is so where its accuracy is not surely above the share of the largest class, and most images of the other
    classes get that class for an answer.
    """
    counts = np.bincount(labels, minlength=len(names))
    largest, n = int(counts.argmax()), len(labels)
    others = labels != largest
    if n == 0 or not others.any() or float((answers[others] == largest).mean()) <= 0.5:
        return ""
    right, share = int((answers == labels).sum()), counts[largest] / n
    if wilson(right, n)[0] > share:
        return ""
    return (
        f"{right / n:.1%} of {n:,} images are right, and the answer '{names[largest]}' alone would have "
        f"{share:.1%}: it is given to {float((answers == largest).mean()):.1%} of all images"
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, JASA 22, 1927); (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, shrink = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)


def per_class(labels: Classes, right: NDArray[np.bool_], classes: int) -> tuple[Classes, Classes]:
    """Images of each class, and how many of them are right, int64 `(K,)` each."""
    return np.bincount(labels, minlength=classes), np.bincount(labels[right], minlength=classes)
