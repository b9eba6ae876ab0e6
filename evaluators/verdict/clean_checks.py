"""Checks of the answers to clean images: do images, labels and classes fit the model? If they do not, no number of the
evaluation means anything."""

from collections.abc import Sequence

import numpy as np

from dgad_tk.answers.doubts import NONE, little, one_answer, other_order, outnumbers, per_class, too_few, wilson
from dgad_tk.data.labels.order import as_flag
from evaluators.engine.record import Evaluation
from evaluators.results import Item, Results
from evaluators.verdict.verdicts import at_least, by_share

OF_IMAGES = {"finite", "clean", "constant", "one answer", "order of classes", "channels"}
"""Checks whose doubt may come from images that are prepared in another way than the file wants."""


def may_want_others(results: Results) -> bool:
    """Whether the clean answers of a file suggest that it wants its images prepared in another way."""
    doubted = any(item.name in OF_IMAGES and item.verdict != "high" for item in results.checks.items)
    return doubted or little(results.clean.accuracy, 1 / max(2, len(results.dataset.classes)))


def of_clean(evaluation: Evaluation) -> list[Item]:
    """Doubts about the clean answers; empty if there are none."""
    labels, names, n = evaluation.labels, evaluation.classes, len(evaluation.labels)
    answers = np.where(evaluation.clean.finite, evaluation.clean.predicted, NONE)
    items: list[Item] = []
    if missing := int((~evaluation.clean.finite).sum()):
        detail = f"{missing:,} of {n:,} clean images are answered with logits that are not finite: they count as wrong"
        items.append(Item("finite", by_share(missing / n), detail))
    items += _against_guessing(evaluation)
    answered = np.unique(answers)
    if len(answered) == 1 and len(np.unique(labels)) > 1:
        constant = _name(names, int(answered[0]))
        detail = f"every clean image is answered with class {constant}: nothing can change that answer"
        return [*items, Item("constant", "unreliable", detail)]
    if detail := one_answer(labels, answers, names):
        items.append(Item("one answer", "unreliable", detail))
    own = evaluation.predictor.artifact is not None
    if (order := other_order(labels, answers, names, evaluation.predictor.classes)) is not None:
        flag = "" if own or not order.classes else f" ({as_flag(order.classes)})"
        detail = f"{order}{flag}"
        items.append(Item("order of classes", at_least("warn", by_share((order.after - order.before) / n)), detail))
    if (exchange := evaluation.probes.exchange) is not None:
        rights, spoils = exchange.rights, exchange.spoils
        if outnumbers(rights, spoils):
            turned = evaluation.predictor.interface.channel_order == "bgr"
            seems, flag = (
                ("red, green, blue", " (leave out --channel-order bgr)")
                if turned
                else ("blue, green, red", "" if own else " (--channel-order bgr)")
            )
            detail = (
                f"with red and blue exchanged, {rights:,} more of {exchange.images:,} clean images are right and "
                f"{spoils:,} fewer: it seems to want the channels in the order {seems}{flag}"
            )
            items.append(Item("channels", at_least("warn", by_share((rights - spoils) / exchange.images)), detail))
    counts, right = per_class(labels, evaluation.clean_right, evaluation.predictor.classes)
    never = [
        k
        for k in np.flatnonzero((counts > 0) & (right == 0)).tolist()
        if wilson(0, int(counts[k]))[1] <= 1 / len(counts)
    ]
    if never and evaluation.clean_accuracy > 0:
        told = ", ".join(f"{_name(names, k)} ({counts[k]:,} images)" for k in never[:5])
        more = f", and {len(never) - 5} more classes" if len(never) > 5 else ""
        items.append(Item("classes", "warn", f"never right on clean images of {told}{more}"))
    return items


def _against_guessing(evaluation: Evaluation) -> list[Item]:
    """The interval of the clean accuracy has to lie above what guessing gives."""
    n, chance = len(evaluation.labels), 1 / evaluation.predictor.classes
    low, high = wilson(int(evaluation.clean_right.sum()), n)
    if low > chance:
        return []
    share = f"{evaluation.clean_accuracy:.1%} of {n:,} clean images are right ({low:.1%} to {high:.1%})"
    detail = f"{share}, no more than by guessing ({chance:.1%})"
    # Such a wide interval says nothing in either direction.
    if too_few(int(evaluation.clean_right.sum()), n, chance):
        return [Item("clean", "warn", f"{detail}: too few images to tell")]
    return [Item("clean", "unreliable", f"{detail}: are labels and preprocessing those of its training?")]


def _name(names: Sequence[str], k: int) -> str:
    return "none" if k == NONE else f"'{names[k]}'" if k < len(names) else str(k)
