"""One evaluation as it is read back from its folder: the results, what became of each image, and some of the images."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NOT_FINITE
from dgad_tk.common import UserError, reason_of
from evaluators.results import FILE, Attack, Results, read_results

_AGAIN = "run that evaluation again: the same command goes on from what is stored"


@dataclass(frozen=True)
class Samples:
    """`samples.npz`: every image's outcome.

    Attributes:
        label, clean_pred: class numbers, int64 `(n,)`; `clean_pred` is -1 where logits are not finite.
        clean_confidence: probability of `clean_pred`, `(n,)`; None in files of older versions.
        rows: by id of a row that is done: its arrays by name, `(m,)` each: `robust`, `adv_pred` (a class, NOT_ATTACKED
            or NOT_FINITE), `l2`, `linf`, and
            where known `confidence` and `broken_by`.
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


def _arrays(file: Path) -> dict[str, NDArray[Any]] | None:
    if not file.is_file():
        return None
    try:
        with np.load(BytesIO(file.read_bytes())) as arrays:
            return dict(arrays)
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
        raise UserError(f"'{file}' is damaged: {reason_of(error)}", hint=_AGAIN) from None


def _samples(folder: Path, results: Results) -> Samples | None:
    file = folder / "samples.npz"
    arrays = _arrays(file)
    if arrays is None:
        return None
    n, lengths = results.dataset.n, {row.id: row.n for row in results.attacks if row.status == "done"}
    try:
        rows: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in lengths}
        for key, values in arrays.items():
            kind, slash, name = key.partition("/")
            if slash and name in rows:
                rows[name][kind] = values
        for name, found in rows.items():
            for kind in ("robust", "adv_pred", "l2", "linf"):
                if found[kind].shape != (lengths[name],):
                    raise ValueError(f"{kind}/{name} has the shape {found[kind].shape}, expected ({lengths[name]},)")
        if arrays["label"].shape != (n,) or arrays["clean_pred"].shape != (n,):
            raise ValueError(f"expected one label and one answer for each of {n} images")
        return Samples(arrays["label"], arrays["clean_pred"], arrays.get("clean_confidence"), rows)
    except (KeyError, ValueError) as error:
        raise UserError(f"'{file}' does not belong to '{folder / FILE}': {reason_of(error)}", hint=_AGAIN) from None


def _gallery(folder: Path, results: Results) -> tuple[Shown, ...]:
    file = folder / "gallery.npz"
    arrays = _arrays(file)
    if arrays is None:
        return ()
    try:
        clean, adversarial = arrays["clean"], arrays["adversarial"]
        if clean.shape != adversarial.shape or clean.ndim != 4:
            raise ValueError(f"images have the shapes {clean.shape} and {adversarial.shape}")
        if strange := set(arrays["row"].tolist()) - {row.id for row in results.attacks}:
            raise ValueError(f"no row is called {', '.join(sorted(map(str, strange)))}")
        return tuple(
            Shown(
                clean=clean[at],
                adversarial=adversarial[at],
                row=str(arrays["row"][at]),
                position=int(arrays["position"][at]),
                label=int(arrays["label"][at]),
                answer=int(arrays["adv_pred"][at]),
                clean_confidence=_known(arrays, "clean_confidence", at),
                confidence=_known(arrays, "confidence", at),
                l2=float(np.linalg.norm((adversarial[at] - clean[at]).astype(np.float64))),
                linf=float(np.abs(adversarial[at].astype(np.float64) - clean[at]).max(initial=0.0)),
            )
            for at in range(len(clean))
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"'{file}' does not belong to '{folder / FILE}': {reason_of(error)}", hint=_AGAIN) from None


def _known(arrays: Mapping[str, NDArray[Any]], name: str, at: int) -> float | None:
    value = float(arrays[name][at]) if name in arrays else float("nan")
    return None if np.isnan(value) else value
