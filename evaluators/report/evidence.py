"""One evaluation as it is read back from its folder: the results, what became of each image, and some of the images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NONE, NOT_ATTACKED, NOT_FINITE
from dgad_tk.common import UserError, reason_of
from dgad_tk.config.threat import LARGEST_EPS
from dgad_tk.strangers.arrays import read_arrays
from evaluators.results import AGAIN, FILE, Attack, Results, read_results

LARGEST = 2**30
"""Bytes of the arrays of one file: those of a million images and thirty rows, or of 64 photographs of 1000 x 1000."""
MOST_SHOWN = 1024
"""Images of a gallery; ours hold at most 64."""


@dataclass(frozen=True)
class Samples:
    """`samples.npz`: every image's outcome.

    Attributes:
        label, clean_pred: class numbers, int64 `(n,)`; `clean_pred` is -1 where logits are not finite.
        clean_confidence: probability of `clean_pred`, `(n,)`; None in files of older versions.
        rows: by id of a row that is done: its arrays by name, `(m,)` each: `robust`, `adv_pred` (a class, NOT_ATTACKED
            or NOT_FINITE), `l2`, `linf`, and
            where known `confidence`, `broken_by` and `distance`, which is in the row's own norm.
    """

    label: NDArray[np.int64]
    clean_pred: NDArray[np.int64]
    clean_confidence: NDArray[np.float32] | None
    rows: Mapping[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Shown:
    """An image of `gallery.npz`: a row of the evaluation broke it.

    Attributes:
        clean, adversarial: float32 `(C, H, W)` in [0, 1].
        row: id of the row.
        position: of the image in the evaluated order.
        label, answer: class numbers.
        clean_confidence, confidence: probabilities of the answers before and after; None if not known.
        l2, linf: distances.
    """

    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    row: str
    position: int
    label: int
    answer: int
    clean_confidence: float | None
    confidence: float | None
    l2: float
    linf: float


@dataclass(frozen=True)
class Evidence:
    """What a report is made of.

    Attributes:
        folder: where it was read.
        samples: None where `samples.npz` is not there.
        gallery: empty where `gallery.npz` is not there.
    """

    results: Results
    folder: Path
    samples: Samples | None
    gallery: tuple[Shown, ...]

    @property
    def done(self) -> list[Attack]:
        """The rows that have a result."""
        return [row for row in self.results.attacks if row.status == "done"]

    def class_name(self, number: int) -> str:
        """The name of a class, or its number where results do not name it; of NOT_FINITE, that there is none."""
        if number == NOT_FINITE:
            return "no answer"
        names = self.results.dataset.classes
        return names[number] if 0 <= number < len(names) else str(number)


def recorded(results: Results, key: str) -> dict[str, Any]:
    """A part of the model's record, such as `training`; empty where there is none, or where it is something else."""
    found = (results.model.metadata or {}).get(key)
    return found if isinstance(found, dict) else {}


def read_evidence(path: Path) -> Evidence:
    """Read `results.json`, or the one in a folder, and the arrays beside it.

    Raises:
        UserError: there is none, it is not ours, or a file is damaged or belongs to other results.
    """
    results = read_results(path)
    folder = path if path.is_dir() else path.parent
    return Evidence(results, folder, _samples(folder, results), _gallery(folder, results))


def number(value: object) -> float | None:
    """A finite number of a stranger's record; None for anything else, also for true, false and what no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _arrays(file: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]] | None:
    if not file.is_file():
        return None
    try:
        return read_arrays(file, wanted, most=LARGEST)
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
        raise UserError(f"'{file}' is damaged: {reason_of(error)}", hint=AGAIN) from None


def _samples(folder: Path, results: Results) -> Samples | None:
    file = folder / "samples.npz"
    kinds = {f"{kind}/{row.id}" for row in results.attacks if row.status == "done" for kind in _ROW}
    arrays = _arrays(file, ({"label", "clean_pred", "clean_confidence"} | kinds).__contains__)
    if arrays is None:
        return None
    n, labels = results.dataset.n, _labels(results)
    try:
        rows = {}
        for row in (each for each in results.attacks if each.status == "done"):
            found = {kind: arrays.get(f"{kind}/{row.id}") for kind in _ROW}
            rows[row.id] = {
                kind: _checked(f"{kind}/{row.id}", values, _ROW[kind], (row.n,))
                for kind, values in found.items()
                if values is not None or kind not in _OPTIONAL
            }
            attacked = rows[row.id]["adv_pred"] != NOT_ATTACKED
            if any(np.isnan(rows[row.id][kind][attacked]).any() for kind in ("l2", "linf")):
                raise ValueError(f"{row.id} has no distance of an image that was attacked")
        sure = arrays.get("clean_confidence")
        return Samples(
            _checked("label", arrays.get("label"), labels, (n,)),
            _checked("clean_pred", arrays.get("clean_pred"), _ANSWER, (n,)),
            None if sure is None else _checked("clean_confidence", sure, _PROBABILITY, (n,)),
            rows,
        )
    except ValueError as error:
        raise UserError(f"'{file}' does not belong to '{folder / FILE}': {reason_of(error)}", hint=AGAIN) from None


def _gallery(folder: Path, results: Results) -> tuple[Shown, ...]:
    file, images = folder / "gallery.npz", _Values("f", 0.0, 1.0)
    wanted = {
        "position": _Values("iu", 0, results.dataset.n - 1),
        "label": _labels(results),
        "adv_pred": _ROW["adv_pred"],
        "clean_confidence": _PROBABILITY,
        "confidence": _PROBABILITY,
    }
    arrays = _arrays(file, {"clean", "adversarial", "row", *wanted}.__contains__)
    if arrays is None:
        return ()
    try:
        shape = arrays["clean"].shape if "clean" in arrays else ()
        if len(shape) != 4 or 0 in shape[1:] or shape[0] > MOST_SHOWN:
            raise ValueError(f"images have the shape {shape}")
        if results.dataset.shape not in (None, shape[1:]):
            raise ValueError(f"images have the shape {shape[1:]}, expected {results.dataset.shape}")
        clean, adversarial = (_checked(name, arrays.get(name), images, shape) for name in ("clean", "adversarial"))
        row = arrays.get("row")
        if row is None or row.shape != shape[:1] or (row.size and row.dtype.kind != "U"):
            raise ValueError("expected the name of a row for each image")
        if strange := set(row.tolist()) - {each.id for each in results.attacks}:
            raise ValueError(f"no row is called {', '.join(sorted(map(str, strange)))}")
        found = {
            name: _checked(name, arrays.get(name), values, shape[:1])
            for name, values in wanted.items()
            if name in arrays or name not in ("clean_confidence", "confidence")
        }
        return tuple(
            Shown(
                clean=clean[at],
                adversarial=adversarial[at],
                row=str(row[at]),
                position=int(found["position"][at]),
                label=int(found["label"][at]),
                answer=int(found["adv_pred"][at]),
                clean_confidence=_known(found, "clean_confidence", at),
                confidence=_known(found, "confidence", at),
                l2=float(np.linalg.norm((adversarial[at] - clean[at]).astype(np.float64))),
                linf=float(np.abs(adversarial[at].astype(np.float64) - clean[at]).max(initial=0.0)),
            )
            for at in range(len(clean))
        )
    except ValueError as error:
        raise UserError(f"'{file}' does not belong to '{folder / FILE}': {reason_of(error)}", hint=AGAIN) from None


def _known(arrays: Mapping[str, NDArray[Any]], name: str, at: int) -> float | None:
    value = float(arrays[name][at]) if name in arrays else float("nan")
    return None if np.isnan(value) else value


@dataclass(frozen=True)
class _Values:
    """What an array may hold: kinds of numpy's types, and numbers from `least` to `most`, or NaN where `nan`."""

    kinds: str
    least: float = 0
    most: float = 1
    nan: bool = False


_ANSWER = _Values("iu", NONE, 2**31)
_PROBABILITY = _Values("f", 0.0, 1.001, nan=True)  # a file's own probabilities may sum to a little more than 1
_DISTANCE = _Values("f", 0.0, LARGEST_EPS, nan=True)
_ROW = {
    "robust": _Values("b"),
    "adv_pred": _Values("iu", NOT_FINITE, 2**31),
    "l2": _DISTANCE,
    "linf": _DISTANCE,
    "distance": _DISTANCE,
    "confidence": _PROBABILITY,
    "broken_by": _Values("iu", -1, 127),
}
_OPTIONAL = ("confidence", "broken_by", "distance")


def _labels(results: Results) -> _Values:
    """Labels, which older results do not name."""
    return _Values("iu", 0, (len(results.dataset.classes) or 2**31) - 1)


def _checked(name: str, values: NDArray[Any] | None, allowed: _Values, shape: tuple[int, ...]) -> NDArray[Any]:
    """`values`, if they are there, of this shape, and what is allowed; ValueError otherwise."""
    if values is None:
        raise ValueError(f"there is no {name}")
    if values.shape != shape or values.dtype.kind not in allowed.kinds:
        raise ValueError(f"{name} is {values.dtype} {values.shape}, expected {shape}")
    outside = ~((values >= allowed.least) & (values <= allowed.most))
    if allowed.nan:
        outside &= ~np.isnan(values)
    if outside.any():
        raise ValueError(f"{name} has {values[outside][0]}, expected {allowed.least:g} to {allowed.most:g}")
    return values.astype(np.int64) if values.dtype.kind in "iu" else values
