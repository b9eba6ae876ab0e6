"""Single images: the gallery, how far attacks had to go, and how sure the model was before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.report.evaluation.classes import broken
from evaluators.report.evaluation.headline import strongest
from evaluators.report.evidence import Evidence, Shown
from evaluators.report.pages.charts import Axis, Chart, histogram, round_numbers
from evaluators.report.pages.pictures import SMALL, Picture, change, picture
from evaluators.report.pages.words import count, name, percent

MOST_SMALL, MOST_LARGE = 20, 12
"""Figures of a gallery: of images whose pixels are shown, and of photographs, which take more room."""

OTHERS = "One of each other class"


@dataclass(frozen=True)
class Figure:
    """An image, its change and the result."""

    id: str
    images: Sequence[Picture]
    text: str
    detail: str


@dataclass(frozen=True)
class Group:
    """Figures that were chosen for one reason."""

    title: str
    figures: list[Figure]


@dataclass(frozen=True)
class Distances:
    """How far an attack without a limit had to go."""

    row: str
    chart: Chart
    said: str


@dataclass(frozen=True)
class Sureness:
    """How sure the model was of right answers, and then of wrong ones."""

    before: Chart
    after: Chart


def gallery(evidence: Evidence, prefix: str) -> list[Group]:
    """Images worth looking at, by what makes them so. Each image is shown once.

    Args:
        prefix: of the ids on the page.
    """
    shown = evidence.gallery
    if not shown:
        return []
    limits = {row.id: row.eps for row in evidence.results.attacks}
    best = strongest(evidence.results)
    own = [each for each in shown if best and each.row == best.id] or list(shown)
    sure = sorted((each for each in own if each.confidence is not None), key=lambda each: -(each.confidence or 0))
    most = MOST_SMALL if max(shown[0].clean.shape[1:]) <= SMALL else MOST_LARGE
    few = most // 4
    groups = (
        ("Smallest changes found", sorted(shown, key=lambda each: each.l2)[:few]),
        ("Most confident of the wrong answer", sure[:few]),
        ("Borderline: least confident of the wrong answer", sure[::-1][:few]),
        (OTHERS, _one_per_class(own)),
    )
    found: list[Group] = []
    seen: dict[tuple[str, int], int] = {}
    for title, members in groups:
        figures = []
        for each in members:
            place = (each.row, each.position)
            if place in seen or len(seen) == most or (title == OTHERS and each.label in seen.values()):
                continue
            seen[place] = each.label
            figures.append(_figure(evidence, each, limits.get(each.row), f"{prefix}image-{len(seen)}"))
        if figures:
            found.append(Group(title, figures))
    return found


def _one_per_class(shown: Sequence[Shown]) -> list[Shown]:
    return list({each.label: each for each in reversed(shown)}.values())[::-1]


def _figure(evidence: Evidence, shown: Shown, eps: float | None, id: str) -> Figure:
    was, became = (name(evidence.class_name(number)) for number in (shown.label, shown.answer))
    norm = next(row.norm for row in evidence.results.attacks if row.id == shown.row)
    full = eps if eps is not None and norm == "linf" else shown.linf
    images = (
        picture(shown.clean, alt=f"The image, of class {was}", caption="image"),
        change(
            shown.clean,
            shown.adversarial,
            full,
            alt=f"The change, full colour at {full:.3g}",
            caption="change",
        ),
        picture(shown.adversarial, alt=f"The changed image, taken for {became}", caption="result"),
    )
    text = f"{was} became {became}"
    if shown.clean_confidence is not None and shown.confidence is not None:
        text = f"{was} ({_sure(shown.clean_confidence)}) became {became} ({_sure(shown.confidence)})"
    return Figure(id, images, text, f"{shown.row}, L2 {shown.l2:.2g}, largest change {shown.linf:.2g}")


def _sure(probability: float) -> str:
    return f"{100 * probability:.0f} %"


def distances(evidence: Evidence) -> list[Distances]:
    """How far each attack without a limit had to go to break an image; of at most three of them."""
    samples, found = evidence.samples, list[Distances]()
    for row in evidence.done:
        if samples is None or row.eps is not None or row.id not in samples.rows or len(found) == 3:
            continue
        kept = samples.rows[row.id]
        norm = row.norm.capitalize() if "distance" in kept else "L2"
        values = kept.get("distance", kept["l2"])[broken(samples, row.id)].astype(np.float64)
        if len(values) < 2:
            continue
        middle, high = float(np.median(values)), float(values.max())
        ticks = round_numbers(0.0, high)
        axis = Axis(f"{name(norm)} distance to the adversarial image", 0.0, max(high, ticks[-1]) or 1.0)
        said = f"Half of the {count(len(values), 'image')} that {row.id} broke are no further than {middle:.3g} away."
        chart = histogram([values.tolist()], axis, bins=24, alt=said, guides=[(middle, f"median {middle:.3g}")])
        found.append(Distances(row.id, chart, said))
    return found


def sureness(evidence: Evidence) -> Sureness | None:
    """Confidence before the strongest attack, where the model was right, and after it, where it broke."""
    samples, row = evidence.samples, strongest(evidence.results)
    if samples is None or row is None or samples.clean_confidence is None:
        return None
    kept = samples.rows.get(row.id, {}).get("confidence")
    if kept is None:
        return None
    broke = broken(samples, row.id)
    before = samples.clean_confidence[samples.clean_pred == samples.label]
    after = kept[broke & np.isfinite(kept)]
    if len(before) < 2 or len(after) < 2:
        return None
    axis = Axis("probability of the answer", 0.0, 1.0, [(each / 4, f"{25 * each} %") for each in range(5)])
    texts = [
        f"Right answers to clean images: the median probability is {percent(float(np.median(before)))}.",
        f"Wrong answers after {row.id}: the median probability is {percent(float(np.median(after)))}.",
    ]
    charts = [
        histogram([values[np.isfinite(values)].tolist()], axis, bins=20, alt=text)
        for values, text in zip((before, after), texts, strict=True)
    ]
    return Sureness(*charts)
