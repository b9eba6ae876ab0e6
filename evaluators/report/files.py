"""The files of an evaluation, all derived from its record: results.json, CSV, samples.npz and gallery.npz."""

import hashlib
import math
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NONE, per_class, wilson
from dgad_tk.artifacts.machine import code_sha256, machine
from dgad_tk.artifacts.record import tool_versions
from dgad_tk.common import write_json, written_aside
from dgad_tk.data import Split
from evaluators.engine.record import Evaluation, Outcome
from evaluators.engine.units import Unit
from evaluators.report.curves import CURVES, curve_rows, curves_of, forget_curves
from evaluators.report.evaluation.headline import strongest
from evaluators.report.forms.csv_rows import csv_rows
from evaluators.results import (
    FILE,
    Attack,
    AttackedClass,
    Clean,
    CleanClass,
    Dataset,
    Model,
    Results,
    Stage,
    Threat,
    WorstCase,
)
from evaluators.target.judge import images_of
from evaluators.verdict.checks import check

GALLERY_LIMIT, GALLERY_VALUES = 64, 2**22
"""Images of the gallery; of large images fewer, so that they hold no more numbers, but 16."""
PIECE = 500


def results(
    evaluation: Evaluation, *, command: str, dataset: str, split: str, resize: str = "", curves: bool = False
) -> Results:
    """The record in shares and counts of all n images.

    Args:
        curves: with robust accuracy against eps, of each min-norm row.
    """
    predictor, n = evaluation.predictor, len(evaluation.labels)
    correct = int(evaluation.clean_right.sum())
    return Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=Model(
            path=str(predictor.path),
            sha256=predictor.sha256,
            format=predictor.format,
            size=predictor.path.stat().st_size if predictor.path and predictor.path.is_file() else None,
            precision=predictor.precision,
            metadata=predictor.artifact.to_dict() if predictor.artifact else None,
            preprocessing=predictor.interface.to_dict(),
            notes=list(predictor.notes),
        ),
        dataset=Dataset(
            name=dataset,
            split=split,
            n=n,
            sha256=evaluation.images_sha256,
            shape=predictor.input_shape,
            classes=list(evaluation.classes),
            resize=resize,
        ),
        threat=Threat(norm=evaluation.norm, eps=list(evaluation.eps)),
        seed=evaluation.seed,
        clean=Clean(
            accuracy=correct / n,
            correct=correct,
            n=n,
            non_finite=int((~evaluation.clean.finite).sum()),
            classes=[CleanClass(**each) for each in _per_class(evaluation, evaluation.clean_right)],
        ),
        attacks=[_attack(outcome, n) for outcome in evaluation.outcomes],
        worst_case=[_worst_case(evaluation, eps) for eps in evaluation.judged_eps],
        curves=curves_of(evaluation) if curves else [],
        twin=asdict(evaluation.twin) if evaluation.twin else {},
        checks=check(evaluation),
        environment={
            **tool_versions(),
            "runtime": predictor.runtime,
            "batch_size": evaluation.batch_size,
            **machine(),
            "code": code_sha256(),
        },
    )


def _attack(outcome: Outcome, n: int) -> Attack:
    row, unit = outcome.row, outcome.unit
    found: dict[str, Any] = {"n": n}
    if unit is not None:
        attacked, broken, n = int(unit.attacked.sum()), int(unit.broken.sum()), len(unit.attacked)
        robust = attacked - broken
        found = {
            "n": n,
            "success": broken / attacked if attacked else None,
            "failed": robust / attacked if attacked else None,
            "median_l2": float(np.median(unit.l2[unit.broken])) if broken else None,
            "median_distance": float(np.median(unit.distance[unit.broken])) if broken else None,
            "reused": unit.reused,
            "stages": [
                Stage(name=name, broken=int((unit.broken_by == number).sum()), seconds=round(seconds, 3))
                for number, (name, seconds) in enumerate(zip_longest(unit.stages, unit.stage_seconds, fillvalue=0.0))
            ],
            "seconds": round(unit.seconds, 3),
            "forward_passes": unit.forward_passes,
            "backward_passes": unit.backward_passes,
        }
        if row.spec.kind == "budget":
            found |= {"robust_accuracy": robust / n, "robust": robust, "ci95": wilson(robust, n)}
        else:
            found["accuracy"] = robust / n
    return Attack(
        id=row.id,
        name=row.attack,
        autoattack=row.spec.autoattack,
        description=row.spec.description,
        kind=row.spec.kind,
        source=row.source,
        surrogate=row.surrogate.name if row.surrogate else None,
        norm=row.norm,
        eps=row.eps,
        params=row.settings,
        status=outcome.status,
        reason=outcome.reason,
        flags=outcome.flags,
        **found,
    )


def _worst_case(evaluation: Evaluation, eps: float) -> WorstCase:
    held = evaluation.held(eps)
    robust, n = int(held.sum()), len(held)
    return WorstCase(
        norm=evaluation.norm,
        eps=eps,
        robust_accuracy=robust / n,
        robust=robust,
        n=n,
        ci95=wilson(robust, n),
        classes=[AttackedClass(**each) for each in _per_class(evaluation, held)],
    )


def _per_class(evaluation: Evaluation, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """How many images of each class are right. Classes without images are left out."""
    counts, rights = per_class(evaluation.labels, right, len(evaluation.classes))
    classes = zip(evaluation.classes, counts.tolist(), rights.tolist(), strict=True)
    return [{"class_": name, "n": n, "right": of_n} for name, n, of_n in classes if n]


def write(evaluation: Evaluation, found: Results, folder: Path) -> None:
    """Write the results files of one evaluated model into `folder`, `results.json` last.

    So a folder with `results.json` is complete. `evaluation.page.write_report` draws `report.html` from these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    for name, arrays in (("samples", samples(evaluation)), ("gallery", _gallery(evaluation, found))):
        with written_aside(folder / f"{name}.npz") as aside:
            np.savez_compressed(aside, **arrays)
    with written_aside(folder / "results.csv") as aside:
        aside.write_text(csv_rows([found]), encoding="utf-8", newline="")
    forget_curves(folder)
    if found.curves:
        with written_aside(folder / CURVES) as aside:
            aside.write_text(curve_rows([found]), encoding="utf-8", newline="")
    write_json(folder / FILE, found.to_dict())


def samples(evaluation: Evaluation) -> dict[str, Any]:
    """Per image `index`, `label`, `clean_pred`, its probability `clean_confidence`, and the fingerprint `image`; for
    each row `robust/<id>`, `adv_pred/<id>`, `confidence/<id>`, `l2/<id>`, `linf/<id>`, of a min-norm row
    `distance/<id>` in its own norm, and of an ensemble `broken_by/<id>`.

    `clean_pred` is -1 where logits are not finite. `adv_pred` is -1 where an image was not attacked, since it was wrong
    already, and -2 where logits are not finite. Probabilities are NaN in all three cases.
    """
    arrays: dict[str, Any] = {
        "index": evaluation.index,
        "label": evaluation.labels,
        "clean_pred": np.where(evaluation.clean.finite, evaluation.clean.predicted, NONE),
        "clean_confidence": evaluation.clean.confidence,
        "image": fingerprints(evaluation.split),
    }
    for row, unit in evaluation.done:
        arrays[f"robust/{row.id}"] = unit.attacked & ~unit.broken
        arrays[f"adv_pred/{row.id}"] = unit.answers
        more = [*(["distance"] if row.eps is None else []), *(["broken_by"] if unit.stages else [])]
        for key in ("confidence", "l2", "linf", *more):
            arrays[f"{key}/{row.id}"] = getattr(unit, key)
    return arrays


def fingerprints(split: Split) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each image's pixels and label, `(n,)`. They tell whether two evaluations saw the same."""
    found = np.empty(len(split), dtype=np.uint64)
    for start in range(0, len(split), PIECE):
        part = slice(start, start + PIECE)
        for at, (pixels, label) in enumerate(zip(split.take(part), split.labels[part], strict=True), start):
            digest = hashlib.blake2b(pixels.tobytes() + int(label).to_bytes(8, "little"), digest_size=8).digest()
            found[at] = int.from_bytes(digest, "little")
    return found


def _gallery(evaluation: Evaluation, results: Results) -> dict[str, Any]:
    """At most 64 adversarial images that broke, with the clean ones: `clean`, `adversarial` `(G, C, H, W)`, `row`,
    `position` in the evaluated order, `label`, `clean_confidence`, `adv_pred`, `confidence`."""
    shown = _shown(evaluation, strongest(results))
    places = np.array([unit.gallery_at[at] for _, unit, at in shown], dtype=np.int64)
    images = [unit.gallery[at] for _, unit, at in shown]
    found: dict[str, Any] = {
        "clean": images_of(evaluation.split, places),
        "adversarial": np.array(images, np.float32).reshape(len(shown), *evaluation.predictor.input_shape),
        "row": np.array([name for name, _, _ in shown], dtype=str),
        "position": places,
        "label": evaluation.labels[places],
        "clean_confidence": evaluation.clean.confidence[places],
    }
    for name, key, kind in (("adv_pred", "answers", np.int64), ("confidence", "confidence", np.float32)):
        values = [getattr(unit, key)[place] for (_, unit, _), place in zip(shown, places, strict=True)]
        found[name] = np.array(values, dtype=kind)
    return found


def _shown(evaluation: Evaluation, leading: Attack | None) -> list[tuple[str, Unit, int]]:
    """Row, unit and place in its gallery of each image: all of the leading row, and the others in turns."""
    kept = [(row, unit, list(range(len(unit.gallery)))) for row, unit in evaluation.done]
    turns = [
        (-1 if leading and row.id == leading.id else turn, number, at)
        for number, (row, _, places) in enumerate(kept)
        for turn, at in enumerate(places)
    ]
    most = max(16, min(GALLERY_LIMIT, GALLERY_VALUES // math.prod(evaluation.predictor.input_shape)))
    chosen = sorted((number, at) for _, number, at in sorted(turns)[:most])
    return [(kept[number][0].id, kept[number][1], at) for number, at in chosen]
