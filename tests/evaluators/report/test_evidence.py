"""Results and arrays of strangers: read as they should be, or refused in a sentence."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_files import evidence_folder

from dgad_tk.common import UserError
from evaluators.report.evidence import number, read_evidence
from evaluators.results import read_results
from evaluators.verdict.records import read_record

PGD = "pgd@0.1"


def change(folder: Path, file: str, key: str, values: Any) -> None:
    """Put an array into a file in the place of another; None takes it out."""
    with np.load(folder / file) as arrays:
        found = {name: array for name, array in arrays.items() if name != key}
    np.savez(folder / file, **found, **({} if values is None else {key: values}))


def instead(folder: Path, file: str, key: str, value: Any) -> np.ndarray:
    """The array of a key with another first value, in a type that holds it."""
    with np.load(folder / file) as arrays:
        values = arrays[key]
    changed = values.astype(np.result_type(values, np.asarray(value)))
    changed.reshape(-1)[-1] = value
    return changed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label", -1),
        ("label", 10),
        ("label", 0.5),
        ("clean_pred", -2),
        ("clean_pred", 2**40),
        ("clean_confidence", np.float32(math.inf)),
        ("clean_confidence", np.float32(2)),
        (f"adv_pred/{PGD}", -3),
        (f"adv_pred/{PGD}", 1.5),
        (f"l2/{PGD}", math.nan),
        (f"l2/{PGD}", math.inf),
        (f"l2/{PGD}", 1e300),
        (f"linf/{PGD}", -1.0),
        (f"linf/{PGD}", math.nan),
        (f"confidence/{PGD}", np.float32(-1)),
        (f"robust/{PGD}", 2),
    ],
)
def test_samples_hold_what_they_should(tmp_path: Path, key: str, value: Any) -> None:
    folder = evidence_folder(tmp_path, n=399)  # the last image is attacked
    change(folder, "samples.npz", key, instead(folder, "samples.npz", key, value))
    with pytest.raises(UserError, match=f"samples.npz' does not belong .*{key}|no distance"):
        read_evidence(folder)


@pytest.mark.parametrize("key", ["label", "clean_pred", f"robust/{PGD}", f"adv_pred/{PGD}", f"l2/{PGD}"])
@pytest.mark.parametrize(
    "values", [None, np.array(["a"] * 400), np.zeros((400, 1), np.int64), np.zeros(3), np.array(7)]
)
def test_samples_are_there_and_have_their_shape(tmp_path: Path, key: str, values: Any) -> None:
    folder = evidence_folder(tmp_path)
    change(folder, "samples.npz", key, values)
    with pytest.raises(UserError, match="samples.npz' does not belong"):
        read_evidence(folder)
    if not key.startswith("l2"):
        with pytest.raises(UserError, match="damaged or do not belong together"):
            read_record(folder)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("clean", np.full((16, 1, 8, 8), math.nan, np.float32)),
        ("clean", np.full((16, 1, 8, 8), 2, np.float32)),
        ("clean", np.zeros((16, 1, 0, 8), np.float32)),
        ("clean", np.zeros((16, 3, 8, 8), np.float32)),
        ("clean", np.zeros((16, 1, 8, 8), np.uint8)),
        ("clean", np.zeros(16, np.float32)),
        ("clean", np.array(0.5)),
        ("clean", None),
        ("adversarial", np.zeros((16, 1, 8, 9), np.float32)),
        ("adversarial", None),
        ("row", np.array([["autoattack@0.2"]] * 16)),
        ("row", np.arange(16)),
        ("row", np.array(["nobody"] * 16)),
        ("row", None),
        ("position", np.full(16, 400)),
        ("position", np.full(16, -1)),
        ("position", np.full(16, 0.5)),
        ("label", np.full(16, 10)),
        ("adv_pred", np.full(16, -3)),
        ("adv_pred", np.array(["a"] * 16)),
        ("confidence", np.full(16, math.inf)),
        ("clean_confidence", np.zeros(3)),
    ],
)
def test_galleries_hold_what_they_should(tmp_path: Path, key: str, values: Any) -> None:
    folder = evidence_folder(tmp_path)
    change(folder, "gallery.npz", key, values)
    with pytest.raises(UserError, match="gallery.npz' does not belong"):
        read_evidence(folder)


def test_a_gallery_is_a_choice(tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path, n=20_000, shown=2000)
    with pytest.raises(UserError, match="gallery.npz' does not belong .*2000"):
        read_evidence(folder)


@pytest.mark.parametrize("file", ["samples.npz", "gallery.npz"])
def test_other_members_are_not_read(tmp_path: Path, file: str) -> None:
    folder = evidence_folder(tmp_path)
    with zipfile.ZipFile(folder / file, "a") as archive:
        archive.writestr("notes.npy", b"no array")
        archive.writestr("l2/nobody.npy", b"no array")
    evidence = read_evidence(folder)
    assert evidence.samples is not None
    assert len(evidence.gallery) == 16


@pytest.mark.parametrize("file", ["samples.npz", "gallery.npz"])
@pytest.mark.parametrize("bound", ["evaluators.report.evidence.LARGEST", "evaluators.verdict.records.LARGEST"])
def test_files_that_claim_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, bound: str) -> None:
    folder = evidence_folder(tmp_path)
    monkeypatch.setattr(bound, 2000)
    with pytest.raises(UserError, match=r"samples.npz'.* damaged.*more than 2,000 bytes"):
        (read_evidence if "evidence" in bound else read_record)(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("clean.accuracy", 1.5),
        ("clean.correct", 401),
        ("clean.correct", -1),
        ("clean.n", -1),
        ("clean.classes.0.n", 0),
        ("clean.classes.0.correct", 41),
        ("dataset.n", 10**400),
        ("dataset.shape", [1, 0, 8]),
        ("threat.eps.0", 0),
        ("threat.eps.0", 1e300),
        ("attacks.0.eps", -0.1),
        ("attacks.0.robust", 401),
        ("attacks.0.robust_accuracy", -0.5),
        ("attacks.0.ci95", [-1, 2]),
        ("attacks.0.success", 1.01),
        ("attacks.0.median_l2", -1),
        ("attacks.0.seconds", -1),
        ("attacks.0.forward_passes", -1),
        ("attacks.2.stages.0.broken", -1),
        ("worst_case.0.robust", 401),
        ("worst_case.0.eps", 0),
        ("worst_case.0.classes.0.robust", 41),
        ("model.size", -1),
    ],
)
def test_results_hold_what_they_should(tmp_path: Path, path: str, value: Any) -> None:
    folder = evidence_folder(tmp_path)
    document = json.loads((folder / "results.json").read_text())
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    part = document
    for step in way:
        part = part[step]
    assert last in part if isinstance(part, dict) else len(part) > last
    part[last] = value
    (folder / "results.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="results.json' is damaged: "):
        read_results(folder)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0.5, 0.5), (3, 3.0), (-1, -1.0), (10**300, 1e300)),
        *((each, None) for each in (True, "1", None, [1], 10**400, math.nan, -math.inf)),
    ],
)
def test_numbers_of_a_strangers_record(value: object, expected: float | None) -> None:
    assert number(value) == expected
