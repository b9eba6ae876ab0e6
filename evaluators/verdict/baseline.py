"""Comparison with an earlier evaluation: rows with the same question, paired image by image."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError, reason_of
from dgad_tk.strangers.number_text import format_fraction
from evaluators.results import HINT, Attack, Gate, Results, read_results
from evaluators.verdict.gate import CLEAN, WORST_CASE, percent
from evaluators.verdict.paired import paired

CHANCE = 0.05
"""A difference with a smaller p is more than chance."""

Right = NDArray[np.bool_]
Question = tuple[str, str | None, str, float]
"""Attack, surrogate, norm and eps. Rows of two evaluations are compared if these are equal."""


@dataclass(frozen=True)
class Record:
    """An evaluation, image by image.

    Attributes:
        index: places in the dataset, int64 `(n,)`.
        image: fingerprints of the images and their labels, uint64 `(n,)`.
        clean: where the clean prediction is right, bool `(n,)`.
        robust: by id of each budget row that is done: which of the first m images withstood, bool `(m,)`.
    """

    results: Results
    index: NDArray[np.int64]
    image: NDArray[np.uint64]
    clean: Right
    robust: Mapping[str, Right]

    @property
    def rows(self) -> dict[Question, Attack]:
        """The budget rows by their question."""
        rows = self.results.attacks
        return {(row.name, row.surrogate, row.norm, row.eps): row for row in rows if row.eps is not None}


def read_record(path: Path) -> Record:
    """`results.json`, or the one in a folder, with the `samples.npz` beside it.

    Raises:
        UserError: one of them is missing, not ours, or damaged.
    """
    results = read_results(path)
    samples = path / "samples.npz" if path.is_dir() else path.with_name("samples.npz")
    if not samples.is_file():
        raise UserError(f"no such file: '{samples}'", hint=f"{HINT}; both files are needed to compare")
    try:
        with np.load(BytesIO(samples.read_bytes())) as arrays:
            done = [row for row in results.attacks if row.eps is not None and row.status == "done"]
            robust = {row.id: np.asarray(arrays[f"robust/{row.id}"], dtype=np.bool_) for row in done}
            index, image = arrays["index"], arrays["image"]
            clean = np.asarray(arrays["clean_pred"] == arrays["label"])
        n = results.dataset.n
        if any(each.shape != (n,) for each in (index, image, clean)):
            raise ValueError(f"expected one value for each of {n} images")
        if any(robust[row.id].shape != (row.n,) for row in done):
            raise ValueError("expected one value for each image of a row")
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
        raise UserError(
            f"'{path}' and '{samples.name}' are damaged or do not belong together: {reason_of(error)}",
            hint="run that evaluation again: the same command goes on from what is stored",
        ) from None
    return Record(results, index, image, clean, robust)


def compare(new: Record, old: Record, max_drop: Fraction | None) -> list[Gate]:
    """Compare clean accuracy, each row that both have, and the worst case over these rows, on the images that both saw.

    With `max_drop`, a gate fails if accuracy fell by more than that on these images, whether by chance or not: with few
    images hardly any drop is significant, so a test of significance would pass nearly everything. Without `max_drop`, a
    gate fails if accuracy fell by more than chance explains: exact McNemar test, p < 0.05. The detail of a gate has p
    and the interval in both cases.

    Raises:
        UserError: the baseline is of another dataset, norm, eps, attack or setting, or saw other images.
    """
    _check_questions(new, old)
    ours, theirs = _shared_images(new, old)
    gates = [_compared(CLEAN, new.clean[ours], old.clean[theirs], max_drop)]
    shared: dict[float, list[tuple[Right, Right]]] = {}
    for question, row in new.rows.items():
        known = old.rows.get(question)
        if known is None or known.id not in old.robust:
            continue
        if row.id not in new.robust:
            reason = f"{row.status}: {row.reason}"
            gates.append(Gate(_name(row.id), False, _required(max_drop), "no answer", reason))
            continue
        asked = (ours < row.n) & (theirs < known.n)
        pair = new.robust[row.id][ours[asked]], old.robust[known.id][theirs[asked]]
        if asked.any():
            gates.append(_compared(row.id, *pair, max_drop))
        if asked.all():
            shared.setdefault(question[3], []).append(pair)
    for eps, pairs in shared.items():
        if len(pairs) > 1:
            name = f"{WORST_CASE}@{format_fraction(eps)}" if len(shared) > 1 else WORST_CASE
            now, before = (np.logical_and.reduce(side) for side in zip(*pairs, strict=True))
            gates.append(_compared(name, now, before, max_drop))
    return gates


def uncompared(new: Record, old: Record) -> list[str]:
    """Ids of the budget rows that the baseline does not have."""
    answered = {question for question, row in old.rows.items() if row.id in old.robust}
    return [row.id for question, row in new.rows.items() if question not in answered]


def _check_questions(new: Record, old: Record) -> None:
    theirs, ours = old.results.dataset, new.results.dataset
    if (theirs.name, theirs.split) != (ours.name, ours.split):
        raise UserError(
            f"--baseline is of {theirs.name} {theirs.split}, this evaluation of {ours.name} {ours.split}",
            hint="compare with an evaluation on the same images",
        )
    common = [question for question in new.rows if question in old.rows]
    if not common:
        raise UserError(
            f"--baseline has {_listed(old)}, this evaluation {_listed(new)}: no row is the same",
            hint="ask for the same attacks, norm and eps, or make a baseline with them",
        )
    for question in common:
        before, now = old.rows[question].params, new.rows[question].params
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"--baseline ran {new.rows[question].id} with {key} {before.get(key)}, this evaluation with "
                    f"{now.get(key)}",
                    hint=f"--set {question[0]}.{key}={before[key]} asks the same" if key in before else "make it again",
                )


def _shared_images(new: Record, old: Record) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in each record of the images that both saw."""
    _, ours, theirs = np.intersect1d(new.index, old.index, return_indices=True)
    if len(ours) == 0:
        raise UserError("--baseline saw none of these images", hint="the first N of --limit N are always the same")
    if not np.array_equal(new.image[ours], old.image[theirs]):
        dataset = new.results.dataset
        raise UserError(
            f"--baseline saw other images or labels under the same places of {dataset.name} {dataset.split}",
            hint="the dataset has changed: make the baseline again",
        )
    return ours, theirs


def _compared(name: str, new: Right, old: Right, max_drop: Fraction | None) -> Gate:
    found = paired(old, new)
    drop = Fraction(found.only_first - found.only_second, found.n)
    by_chance = found.p >= CHANCE
    low, high = found.ci95
    got = f"{new.mean():.1%} after {old.mean():.1%}"
    got += f", {'a drop' if drop > 0 else 'a rise'} of {abs(float(drop)):.2%}" if drop else ", no change"
    detail = f"lost {found.only_first:,} and won {found.only_second:,} of {found.n:,} images, McNemar p = {found.p:.2g}"
    detail += f"; 95 % interval of the drop {low:.2%} to {high:.2%}"
    if drop and by_chance:
        detail += "; within chance"
    passed = drop <= max_drop if max_drop is not None else drop <= 0 or by_chance
    return Gate(_name(name), passed, _required(max_drop), got, detail)


def _name(name: str) -> str:
    return f"baseline:{name}"


def _required(max_drop: Fraction | None) -> str:
    return f"no drop beyond chance, p < {CHANCE}" if max_drop is None else f"a drop of at most {percent(max_drop)}"


def _listed(record: Record) -> str:
    rows = record.rows.values()
    return ", ".join(f"{row.names[0]} {row.norm} {format_fraction(row.eps or 0.0)}" for row in rows) or "none"
