"""An earlier evaluation to compare with: the same questions, asked of the same images, paired image by image."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError, format_fraction, reason_of
from dgad_tk.data import Split
from evaluators.gate import CLEAN, WORST_CASE, GateResult, percent
from evaluators.paired import paired
from evaluators.rows import Row

SCHEMA_PREFIX = "dgad/results/"
CHANCE = 0.05
"""A p below it is more than chance."""
PIECE = 500

Question = tuple[str, str | None, str, float]
"""Attack, surrogate, norm and eps: rows of two evaluations that share them ask the same."""


@dataclass(frozen=True)
class Answered:
    """A budget row of an evaluation.

    Attributes:
        asked: how many of the first images; a slow attack's row may be cut short.
        robust: bool `(n,)`, of which the first `asked` count; None where `reason` says why there is none.
    """

    id: str
    params: Mapping[str, Any]
    asked: int
    robust: NDArray[np.bool_] | None
    reason: str


@dataclass(frozen=True)
class Recorded:
    """What an evaluation left behind, as far as another can be compared with it.

    Attributes:
        dataset: its name and split.
        index: int64 `(n,)`, rows of the dataset.
        image: uint64 `(n,)`, fingerprints of the images and their labels.
        clean: bool `(n,)`, clean predictions that are right.
        answers: the budget rows by their question.
    """

    dataset: tuple[str, str]
    index: NDArray[np.int64]
    image: NDArray[np.uint64]
    clean: NDArray[np.bool_]
    answers: Mapping[Question, Answered]


def fingerprints(split: Split) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each image's pixels and label, `(n,)`: do two evaluations speak of the same images?"""
    found = np.empty(len(split), dtype=np.uint64)
    for start in range(0, len(split), PIECE):
        part = slice(start, start + PIECE)
        for at, (pixels, label) in enumerate(zip(split.take(part), split.labels[part], strict=True), start):
            digest = hashlib.blake2b(pixels.tobytes() + int(label).to_bytes(8, "little"), digest_size=8).digest()
            found[at] = int.from_bytes(digest, "little")
    return found


def recorded(document: Mapping[str, Any], samples: Mapping[str, NDArray[Any]]) -> Recorded:
    """The record in `results.json` and `samples.npz`, or in what is about to be written there.

    Raises:
        KeyError, TypeError, ValueError: they do not follow the schema, or do not belong together.
    """
    answers: dict[Question, Answered] = {}
    n = len(samples["index"])
    for entry in document["attacks"]:
        if entry["eps"] is None:
            continue
        done = entry["status"] == "done"
        robust = np.asarray(samples[f"robust/{entry['id']}"], dtype=np.bool_) if done else None
        question = (entry["name"], entry["surrogate"], entry["norm"], float(entry["eps"]))
        answers[question] = Answered(
            entry["id"], dict(entry["params"]), int(entry["n"]), robust, f"{entry['status']}: {entry['reason']}"
        )
    clean = np.asarray(samples["clean_pred"] == samples["label"])
    vectors = [samples["image"], clean, *(each.robust for each in answers.values() if each.robust is not None)]
    if any(vector.shape != (n,) for vector in vectors):
        raise ValueError(f"expected one value for each of {n} images")
    dataset = document["dataset"]
    return Recorded((dataset["name"], dataset["split"]), samples["index"], samples["image"], clean, answers)


def read(path: Path) -> Recorded:
    """The record of `results.json`, with the `samples.npz` beside it.

    Raises:
        UserError: one of them is missing, not ours, or damaged.
    """
    hint = "name the results.json of an earlier `dgad attack`, with its samples.npz beside it"
    path = path / "results.json" if path.is_dir() else path
    samples = path.with_name("samples.npz")
    for file in (path, samples):
        if not file.is_file():
            raise UserError(f"--baseline: no such file: '{file}'", hint=hint)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        ours = str(document["schema"]).startswith(SCHEMA_PREFIX)
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"--baseline '{path}' was not written by `dgad attack`", hint=hint)
    try:
        with np.load(BytesIO(samples.read_bytes())) as arrays:
            return recorded(document, dict(arrays))
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
        raise UserError(
            f"--baseline: '{path}' and '{samples.name}' are damaged or do not belong together: {reason_of(error)}",
            hint="run that evaluation again: the same command goes on from what is stored",
        ) from None


def check_comparable(old: Recorded, rows: Sequence[Row], dataset: str, split: str, images: Split) -> None:
    """See that there is something to compare, before hours of work for it.

    Args:
        old: the baseline.
        rows: of the evaluation to come, on `images` of a dataset's split.

    Raises:
        UserError: the baseline is of another dataset, norm, eps, attack or setting, or saw other images.
    """
    if old.dataset != (dataset, split):
        raise UserError(
            f"--baseline is of {' '.join(old.dataset)}, this evaluation of {dataset} {split}",
            hint="compare with an evaluation on the same images",
        )
    asked = {_question(row): row for row in rows if row.eps is not None}
    parts = (("norm", 2), ("eps", 3), ("attack", 0))
    for what, at in parts:
        theirs, ours = ({question[at] for question in side} for side in (old.answers, asked))
        if not theirs & ours:
            shown = (_listed(side) for side in (theirs, ours))
            raise UserError(
                "--baseline has {} {}, this evaluation {}".format(what, *shown),
                hint=f"ask for the same {what}, or make a baseline with it",
            )
    common = [question for question in asked if question in old.answers]
    if not common:
        raise UserError(
            f"--baseline has {_listed(each.id for each in old.answers.values())}, this evaluation "
            f"{_listed(row.id for row in asked.values())}: no row is the same",
            hint="ask for the same attacks, surrogates and eps",
        )
    for question in common:
        before, now = old.answers[question].params, dict(asked[question].params)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"--baseline ran {asked[question].id} with {key} {before.get(key)}, this evaluation with "
                    f"{now.get(key)}",
                    hint=f"--set {question[0]}.{key}={before[key]} asks the same" if key in before else "make it again",
                )
    _, ours_at, theirs_at = np.intersect1d(images.index, old.index, return_indices=True)
    if len(ours_at) == 0:
        raise UserError("--baseline saw none of these images", hint="the first N of --limit N are always the same")
    if not np.array_equal(fingerprints(images)[ours_at], old.image[theirs_at]):
        raise UserError(
            f"--baseline saw other images or labels under the same places of {dataset} {split}",
            hint="the dataset has changed: make the baseline again",
        )


def compare(new: Recorded, old: Recorded, max_drop: Fraction | None) -> list[GateResult]:
    """Clean accuracy, each row that both answered, and the worst case over these, on the images that both saw.

    With `max_drop`, a result fails if accuracy fell by more than that on these images, be it chance or not: the bound
    is the user's, and a gate that passed whatever is too rare to be significant would pass anything on few images.
    Without one, it fails if accuracy fell by more than chance explains: exact McNemar test, p < 0.05. Either way p and
    the interval are told.
    """
    _, ours, theirs = np.intersect1d(new.index, old.index, return_indices=True)
    if not np.array_equal(new.image[ours], old.image[theirs]):
        raise ValueError("expected records of the same images")
    results = [_compared(CLEAN, new.clean[ours], old.clean[theirs], max_drop)]
    shared: dict[float, list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]] = {}
    for question, answer in new.answers.items():
        known = old.answers.get(question)
        if known is None or known.robust is None:
            continue
        if answer.robust is None:
            results.append(GateResult(_name(answer.id), False, _required(max_drop), "no answer", answer.reason))
            continue
        asked = (ours < answer.asked) & (theirs < known.asked)
        pair = answer.robust[ours[asked]], known.robust[theirs[asked]]
        if asked.any():
            results.append(_compared(answer.id, *pair, max_drop))
        if asked.all():
            shared.setdefault(question[3], []).append(pair)
    for eps, pairs in shared.items():
        if len(pairs) > 1:
            name = f"{WORST_CASE}@{format_fraction(eps)}" if len(shared) > 1 else WORST_CASE
            now, before = (np.logical_and.reduce(side) for side in zip(*pairs, strict=True))
            results.append(_compared(name, now, before, max_drop))
    return results


def uncompared(new: Recorded, old: Recorded) -> list[str]:
    """Ids of the budget rows that the baseline has no answer to."""
    answered = {question for question, answer in old.answers.items() if answer.robust is not None}
    return [answer.id for question, answer in new.answers.items() if question not in answered]


def _compared(name: str, new: NDArray[np.bool_], old: NDArray[np.bool_], max_drop: Fraction | None) -> GateResult:
    found = paired(old, new)
    drop = Fraction(found.only_first - found.only_second, found.n)
    by_chance = found.p >= CHANCE
    passed = drop <= max_drop if max_drop is not None else drop <= 0 or by_chance
    low, high = found.ci95
    change = "a drop" if drop > 0 else "a rise"
    got = f"{new.mean():.1%} after {old.mean():.1%}"
    got += f", {change} of {abs(float(drop)):.2%}" if drop else ", no change"
    detail = f"lost {found.only_first:,} and won {found.only_second:,} of {found.n:,} images, McNemar p = {found.p:.2g}"
    detail += f"; 95 % interval of the drop {low:.2%} to {high:.2%}"
    if drop and by_chance:
        detail += "; within chance"
    return GateResult(_name(name), passed, _required(max_drop), got, detail)


def _name(name: str) -> str:
    return f"baseline:{name}"


def _required(max_drop: Fraction | None) -> str:
    return f"no drop beyond chance, p < {CHANCE}" if max_drop is None else f"a drop of at most {percent(max_drop)}"


def _question(row: Row) -> Question:
    assert row.eps is not None
    return row.attack, row.surrogate.name if row.surrogate else None, row.norm, row.eps


def _listed(values: Any) -> str:
    shown = sorted(format_fraction(each) if isinstance(each, float) else str(each) for each in values)
    return ", ".join(shown) or "none"
