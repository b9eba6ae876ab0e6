"""Evaluations image by image, as read from their files; whether two of them asked the same of the same images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NONE
from dgad_tk.common import UserError, reason_of
from dgad_tk.strangers.arrays import read_arrays
from dgad_tk.strangers.number_text import format_fraction
from evaluators.results import AGAIN, HINT, Attack, Results, read_results

PRECISION = "search_precision"
"""What rows whose search is not in float32 say among their settings; it comes from a flag of its own."""
LARGEST = 2**30
"""Bytes of the arrays that are read of a file."""
Right = NDArray[np.bool_]
Places = NDArray[np.int64]
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
        label: int64 `(n,)`.
        answer: to the clean images, int64 `(n,)`; -1 where it was not finite.
        attacked: by id of each budget row that is done: the answers to the first m images under attack, int64 `(m,)`;
            those that are wrong when clean are not attacked, and have their clean answer. -1 as above.
    """

    results: Results
    index: Places
    image: NDArray[np.uint64]
    clean: Right
    robust: Mapping[str, Right]
    label: NDArray[np.int64]
    answer: NDArray[np.int64]
    attacked: Mapping[str, NDArray[np.int64]]

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
        done = [row for row in results.attacks if row.eps is not None and row.status == "done"]
        names = {"index", "label", "clean_pred", "image"}
        names |= {f"{kind}/{row.id}" for row in done for kind in ("robust", "adv_pred")}
        arrays = read_arrays(samples, names.__contains__, most=LARGEST)
        if strange := [name for name, values in arrays.items() if values.dtype.kind not in "biu"]:
            raise ValueError(f"{strange[0]} is {arrays[strange[0]].dtype}")
        robust = {row.id: np.asarray(arrays[f"robust/{row.id}"], dtype=np.bool_) for row in done}
        found = {row.id: np.asarray(arrays[f"adv_pred/{row.id}"], dtype=np.int64) for row in done}
        numbers = (np.asarray(arrays[name], dtype=np.int64) for name in ("index", "label", "clean_pred"))
        (index, label, answer), image = numbers, np.asarray(arrays["image"], dtype=np.uint64)
        clean = np.asarray(answer == label)
        n = results.dataset.n
        if any(each.shape != (n,) for each in (index, image, label, answer)):
            raise ValueError(f"expected one value for each of {n} images")
        if any(each[row.id].shape != (row.n,) for row in done for each in (robust, found)):
            raise ValueError("expected one value for each image of a row")
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
        raise UserError(
            f"'{path}' and '{samples.name}' are damaged or do not belong together: {reason_of(error)}",
            hint=AGAIN,
        ) from None
    # NOT_FINITE becomes NONE, since the clean answers have no other word for it.
    attacked = {
        key: np.where(clean[: len(each)], np.maximum(each, NONE), answer[: len(each)]) for key, each in found.items()
    }
    return Record(results, index, image, clean, robust, label, answer, attacked)


def same_questions(one: Record, other: Record, called: tuple[str, str]) -> list[Question]:
    """The questions that both were asked, in the order of the first.

    Args:
        called: what to call the two, for errors.

    Raises:
        UserError: they are of other datasets, have no row in common, or differ in a setting of an attack.
    """
    ours, theirs = one.results.dataset, other.results.dataset
    if (theirs.name, theirs.split) != (ours.name, ours.split):
        raise UserError(
            f"{called[1]} is of {theirs.name} {theirs.split}, {called[0]} of {ours.name} {ours.split}",
            hint="compare with an evaluation on the same images",
        )
    common = [question for question in one.rows if question in other.rows]
    if not common:
        raise UserError(
            f"{called[1]} has {_listed(other)}, {called[0]} {_listed(one)}: no row is the same",
            hint="ask both for the same attacks, norm and eps",
        )
    for question in common:
        before, now = other.rows[question].params, one.rows[question].params
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                if key == PRECISION:
                    before, now = {key: "fp32", **before}, {key: "fp32", **now}
                    ask = f"--search-precision {before[key]} asks the same"
                else:
                    ask = f"--set {question[0]}.{key}={before[key]} asks the same" if key in before else "make it again"
                raise UserError(
                    f"{called[1]} ran {one.rows[question].id} with {key} {before.get(key)}, {called[0]} with "
                    f"{now.get(key)}",
                    hint=ask,
                )
    return common


def shared_places(one: Record, other: Record, called: tuple[str, str]) -> tuple[Places, Places]:
    """Where in each of the two the images are that both saw.

    Args:
        called: what to call the two, for errors.

    Raises:
        UserError: they share no image, or the images have changed in between.
    """
    _, ours, theirs = np.intersect1d(one.index, other.index, return_indices=True)
    if len(ours) == 0:
        raise UserError(f"{called[1]} saw none of these images", hint="the first N of --limit N are always the same")
    if changed := int((one.image[ours] != other.image[theirs]).sum()):
        dataset = one.results.dataset
        if other.results.dataset.classes != dataset.classes:  # labels are part of what is compared
            raise UserError(
                f"{called[1]} has the classes of {dataset.name} in another order than {called[0]}",
                hint="evaluate both with the same order: --classes",
            )
        raise UserError(
            f"{called[1]} saw other images or labels than {called[0]} under {changed:,} of {len(ours):,} shared places "
            f"of {dataset.name} {dataset.split}",
            hint="the dataset has changed: evaluate both on the same files",
        )
    return ours, theirs


def _listed(record: Record) -> str:
    rows = record.rows.values()
    return ", ".join(f"{row.names[0]} {row.norm} {format_fraction(row.eps or 0.0)}" for row in rows) or "none"
