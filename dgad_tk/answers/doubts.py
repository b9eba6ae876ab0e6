"""Finds what an accuracy hides: classes in another order, or one answer for everything. Also intervals of shares.

Where two of ten classes have changed places, 80 % of the answers are still right. Where 95 % of the images are of one
class, that one answer is 95 % right. Each doubt needs enough images and a gain far above noise, so that a model that is
only weak raises none.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dgad_tk.data.labels.order import counted

Classes = NDArray[np.int64]
NONE = -1
"""The answer of a model whose logits are not finite."""
NOT_ATTACKED, NOT_FINITE = -1, -2
"""Among answers under attack: an image that was not attacked, and logits that are not finite."""
NOWHERE = -2
"""Where an order has no class for a label. Never an answer."""
CHANCE = 0.005
"""Level of the sign test: how often an order that is no better seems better."""
EXPLAINED = 1 / 3
"""Share of the errors on the classes concerned that another order must correct, less what it spoils."""
MOST_NAMED = 10
MOST_PAIRS = 2**22
"""Most pairs of label and answer for the search of an assignment: 2,000 classes take seconds and 32 MB."""

LOW = 0.5
"""Share of the way from guessing to all right below which a file from elsewhere may want other images than it gets."""
WIDE = 0.25
"""An interval of an accuracy that reaches further above guessing means that there were too few images."""

PER_CLASS = 3
"""Images per class from which on an assignment is tried: of fewer, one that fits can nearly always be found."""


@dataclass(frozen=True)
class OtherOrder:
    """A one-to-one relabelling of the answers that corrects most errors of the classes that it moves.

    Attributes:
        before, after: number of images right without and with this order.
        n: number of images.
        reason: a clause that explains the order, or names the classes that have changed places.
        classes: names in the order of the answers, which `--classes` takes; empty where a class has no answer.
        order: label to answer, int64 `(K,)`; NOWHERE where the model has no class for a label.
    """

    before: int
    after: int
    n: int
    reason: str
    order: Classes = field(compare=False, repr=False)
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"with its classes in another order {self.after:,} of {self.n:,} images are right instead of "
            f"{self.before:,}: {self.reason}"
        )


def other_order(labels: Classes, answers: Classes, names: Sequence[str], outputs: int = 0) -> OtherOrder | None:
    """The order of classes in which a model seems to answer; None where that is the order of the labels.

    Common orders are tried first, and need one image per class: answers that are one too high or too low, names sorted
    as text or by the numbers in them, and both. Any other order is the best assignment of answers to labels on one half
    of the images, and must prove itself on the other half. It is not searched among more than 2,000 classes.

    Args:
        labels: int64 `(N,)`, below `len(names)`.
        answers: int64 `(N,)`; may hold classes that no label has, or NONE.
        names: of the classes, in the order of the labels.
        outputs: number of classes that the model knows, where there may be more than names and answers.
    """
    known = int(max(answers.max(initial=NONE) + 1, len(names), outputs))
    before = int((answers == labels).sum())

    def told(order: Classes, why: str) -> OtherOrder:
        after = int((answers == order[labels]).sum())
        return OtherOrder(before, after, len(labels), why, order, _in_answer_order(order, names, known))

    common = []
    for order, reason in _common_orders(names, known):
        wanted = order[labels]
        if _convincing((wanted != labels) & (wanted != NOWHERE), labels, answers, wanted):
            common.append(told(order, reason))
    # An order without a place for the largest class may correct all others and still lose.
    best = max((each for each in reversed(common) if each.after > before), key=lambda each: each.after, default=None)
    order = _found_order(labels, answers, len(names), known)
    if (order == np.arange(len(names))).all():
        return best
    found = told(order, _moves(order, names))
    if best is None:
        return found if found.after > before else None
    # The found order was chosen on these images, so it nearly always has a few more right than the true one.
    gained, lost = answers == order[labels], answers == best.order[labels]
    return found if outnumbers(int((gained & ~lost).sum()), int((lost & ~gained).sum())) else best


def _in_answer_order(order: Classes, names: Sequence[str], known: int) -> tuple[str, ...]:
    """The names by answer, `(known,)`; empty where the order has no answer for a class. Answers without a class are
    called by their number, and a single one in front `background`."""
    if (order == NOWHERE).any():
        return ()
    told = {int(answer): name for name, answer in zip(names, order, strict=True)}
    for answer in set(range(known)) - told.keys():
        alone = answer == 0 and known == len(names) + 1 and "background" not in names
        told[answer] = "background" if alone else f"output-{answer}"
    return tuple(told[answer] for answer in range(known)) if len(set(told.values())) == known else ()


def right_at_best(labels: Classes, answers: Classes, names: Sequence[str]) -> NDArray[np.bool_]:
    """Where answers would be right in the order of classes that suits them best, bool `(N,)`.

    That is a bound and no evidence: the order is chosen on the very images that it is judged on. Orders that are not
    common ones are tried where there are at least PER_CLASS images for each class.
    """
    known = int(max(answers.max(initial=NONE) + 1, len(names)))
    orders = [np.arange(len(names)), *(order for order, _ in _common_orders(names, known))]
    if len(labels) >= PER_CLASS * len(names) and len(names) * known <= MOST_PAIRS:
        orders.append(_assigned(labels, answers, len(names), known))
    return max((np.asarray(answers == order[labels]) for order in orders), key=np.count_nonzero)


def is_common(order: Classes, names: Sequence[str]) -> bool:
    """Whether an order, label to answer `(K,)`, is one that files often have, and not one that was searched for."""
    known = max(int(order.max(initial=NONE)) + 1, len(names))
    return any((order == common).all() for common, _ in _common_orders(names, known))


def _common_orders(names: Sequence[str], known: int) -> Iterator[tuple[Classes, str]]:
    """Orders `(K,)`, label to answer or NOWHERE, and the reason of each."""
    here = np.arange(len(names))
    orders = [(here, "")]
    as_text = list(names) == sorted(names)  # else somebody has said another order
    place, folded = ("sorted as text", "ignores capitals") if as_text else ("here", "is alphabetical")
    for key, what in ((counted, "counts the numbers in the names"), (str.casefold, folded)):
        rank = np.argsort(sorted(range(len(names)), key=lambda k: key(names[k])))
        if (moved := np.flatnonzero(rank != here)).size:
            k = int(moved[0])
            example = f"'{names[k]}' is its class {rank[k]}, {place} it is {k}"
            orders.append((rank, f"the model's order {what} ({example})"))
    numbers = np.array(_numbers(names), dtype=np.int64)
    if numbers.size and (np.sort(numbers) != here).any():  # else it is the order of the numbers
        orders.append((numbers, f"the names are the numbers of its classes ('{names[0]}' is its class {numbers[0]})"))
    for order, reason in orders:
        if reason:
            yield np.where(order < known, order, NOWHERE), reason
        for shift, said in (
            (1, "its answers are one too high, as if a class such as 'background' stood in front"),
            (-1, "its answers are one too low, as if the first class were missing"),
        ):
            shifted = order + shift
            inside = (shifted >= 0) & (shifted < known)
            yield np.where(inside, shifted, NOWHERE), "; ".join(filter(None, (said, reason)))


def _numbers(names: Sequence[str]) -> list[int]:
    """The numbers with which names end that begin alike, `7` or `class_7`, each another; else none."""
    found = [re.fullmatch("([^0-9]*)([0-9]{1,9})", name) for name in names]
    parts = [(each[1], int(each[2])) for each in found if each is not None]
    numbers = {number for _, number in parts}
    alike = len({prefix for prefix, _ in parts}) == 1 and len(numbers) == len(names)
    return [number for _, number in parts] if alike else []


def _convincing(rows: NDArray[np.bool_], labels: Classes, answers: Classes, wanted: Classes) -> bool:
    """Whether, on the images `rows`, the answers are surely the classes `wanted` and not the labels."""
    right = int((rows & (answers == wanted) & (answers != labels)).sum())
    spoilt = int((rows & (answers == labels) & (answers != wanted)).sum())
    n = int(rows.sum())
    return right - spoilt >= EXPLAINED * (n - spoilt) and right >= 2 * spoilt and outnumbers(right, spoilt)


def outnumbers(gained: int, lost: int) -> bool:
    """Whether images gained outnumber images lost by more than chance (a one-sided sign test)."""
    if gained <= lost:
        return False
    from scipy.stats import binom  # takes a second to import, and few models need it

    return bool(binom.sf(gained - 1, gained + lost, 0.5) <= CHANCE)


def _found_order(labels: Classes, answers: Classes, k: int, known: int) -> Classes:
    """The best assignment, label to answer `(K,)`, for labels that surely move; the others stay."""
    kept = np.arange(k)
    if (answers == labels).all() or k * known > MOST_PAIRS:
        return kept
    half = np.zeros(len(labels), dtype=np.int64)  # alternates within each class
    for label in range(k):
        of_label = np.flatnonzero(labels == label)
        half[of_label] = np.arange(len(of_label)) % 2
    # Each order is judged on the half that did not choose it.
    orders = [_assigned(labels[half != side], answers[half != side], k, known) for side in (0, 1)]
    wanted = np.where(half == 0, orders[0][labels], orders[1][labels])
    whole, found = _assigned(labels, answers, k, known), kept.copy()
    for group in _groups(whole):
        if _convincing(np.isin(labels, group), labels, answers, wanted):
            found[group] = whole[group]
    return found


def _assigned(labels: Classes, answers: Classes, k: int, known: int) -> Classes:
    """The one-to-one order, label to answer `(K,)`, with most images right. Without evidence a label stays."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((k, known), dtype=np.int64)
    some = answers != NONE
    np.add.at(counts, (labels[some], answers[some]), 1)
    # Staying counts a little more, in all by less than one image.
    worth = counts * (k + 1) + np.eye(k, known, dtype=np.int64)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    order = np.arange(k)
    order[rows] = columns
    return order


def _groups(order: Classes) -> list[Classes]:
    """The moved classes, in groups that exchange places among themselves."""
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
    """A sentence where a model is no better than one answer for everything; else empty.

    It is no better where its accuracy is not surely above the share of the largest class, and that class is the answer
    to most images of the other classes and to most of all.
    """
    counts = np.bincount(labels, minlength=len(names))
    largest, n = int(counts.argmax()), len(labels)
    others = labels != largest
    given = answers == largest
    if n == 0 or not others.any() or given[others].mean() <= 0.5 or given.mean() <= 0.5:
        return ""
    right, share = int((answers == labels).sum()), counts[largest] / n
    if wilson(right, n)[0] > share:
        return ""
    return (
        f"{right / n:.1%} of {n:,} images are right, and the answer '{names[largest]}' alone would have "
        f"{share:.1%}: it is given to {given.mean():.1%} of all images"
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, JASA 22, 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, shrink = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)


def too_few(successes: int, n: int, guessing: float) -> bool:
    """Whether an accuracy that is not surely above guessing tells nothing in either direction."""
    return successes / n > guessing and wilson(successes, n)[1] > guessing + WIDE


def little(accuracy: float, guessing: float) -> bool:
    """Whether an accuracy is so low that a file may want its images prepared in another way."""
    return accuracy < guessing + LOW * (1 - guessing)


def per_class(labels: Classes, right: NDArray[np.bool_], classes: int) -> tuple[Classes, Classes]:
    """Per class: images, and right ones, int64 `(K,)` each."""
    return np.bincount(labels, minlength=classes), np.bincount(labels[right], minlength=classes)
