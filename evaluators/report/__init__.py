"""What an evaluation writes: results.json, results.csv, samples.npz, gallery.npz, all derived from the record."""

import csv
import json
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers import per_class, wilson
from dgad_tk.artifact import tool_versions
from dgad_tk.common import write_json, written_aside
from evaluators.baseline import fingerprints
from evaluators.checks import check
from evaluators.record import Evaluation, Outcome

SCHEMA = "dgad/results/1"
GALLERY_LIMIT = 64


def results(evaluation: Evaluation, *, command: str, dataset: str, split: str) -> dict[str, Any]:
    """The record as `dgad/results/1`, ready for JSON. Accuracies are fractions of 1 over all n images."""
    predictor, n = evaluation.predictor, len(evaluation.labels)
    verdict, items = check(evaluation)
    correct = int(evaluation.clean_right.sum())
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "model": {
            "path": str(predictor.path),
            "sha256": predictor.sha256,
            "format": predictor.format,
            "metadata": predictor.artifact.to_dict() if predictor.artifact else None,
            "preprocessing": predictor.interface.to_dict(),
            "notes": list(predictor.notes),
        },
        "dataset": {"name": dataset, "split": split, "n": n, "sha256": evaluation.images_sha256},
        "threat": {"norm": evaluation.norm, "eps": list(evaluation.eps)},
        "seed": evaluation.seed,
        "clean": {
            "accuracy": correct / n,
            "correct": correct,
            "n": n,
            "non_finite": int((~evaluation.clean_finite).sum()),
            "classes": _per_class(evaluation, evaluation.clean_right, "correct"),
        },
        "attacks": [_attack(outcome, n) for outcome in evaluation.outcomes],
        "worst_case": _worst_cases(evaluation),
        "twin": evaluation.twin,
        "checks": {"verdict": verdict, "items": [vars(item) for item in items]},
        "environment": {**tool_versions(), "runtime": predictor.runtime, "batch_size": evaluation.batch_size},
    }


def _attack(outcome: Outcome, n: int) -> dict[str, Any]:
    row, unit = outcome.row, outcome.unit
    entry: dict[str, Any] = {
        "id": row.id,
        "name": row.attack,
        "kind": row.spec.kind,
        "source": row.source,
        "surrogate": row.surrogate.name if row.surrogate else None,
        "norm": row.norm,
        "eps": row.eps,
        "params": dict(row.params),
        "robust_accuracy": None,
        "robust": None,
        "n": n,
        "ci95": None,
        "success": None,
        "failed": None,
        "median_l2": None,
        "accuracy": None,
        "reused": 0,
        "stages": [],
        "seconds": 0.0,
        "forward_passes": 0,
        "backward_passes": 0,
        "status": outcome.status,
        "reason": outcome.reason,
        "flags": outcome.flags,
    }
    if unit is None:
        return entry
    attacked, broken, n = int(unit.attacked.sum()), int(unit.broken.sum()), len(unit.attacked)
    entry |= {
        "n": n,
        "reused": unit.reused,
        "stages": [
            {"name": name, "broken": int((unit.broken_by == number).sum()), "seconds": round(seconds, 3)}
            for number, (name, seconds) in enumerate(zip_longest(unit.stages, unit.stage_seconds, fillvalue=0.0))
        ],
        "success": broken / attacked if attacked else None,
        "failed": (attacked - broken) / attacked if attacked else None,
        "median_l2": float(np.median(unit.l2[unit.broken])) if broken else None,
        "seconds": round(unit.seconds, 3),
        "forward_passes": unit.forward_passes,
        "backward_passes": unit.backward_passes,
    }
    if row.spec.kind == "budget":
        robust = attacked - broken
        entry |= {"robust_accuracy": robust / n, "robust": robust, "ci95": list(wilson(robust, n))}
    else:
        # Papers print what is left after an attack without a ball, which says as much about its search as its target.
        entry["accuracy"] = (attacked - broken) / n
    return entry


def _worst_cases(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Per norm and eps: images that withstand every budget attack that ran there."""
    n, found = len(evaluation.labels), []
    for eps in evaluation.eps:
        if not any(evaluation.judges(outcome, eps) and outcome.row.eps == eps for outcome in evaluation.outcomes):
            continue
        held = evaluation.held(eps)
        robust = int(held.sum())
        found.append(
            {
                "norm": evaluation.norm,
                "eps": eps,
                "robust_accuracy": robust / n,
                "robust": robust,
                "n": n,
                "ci95": list(wilson(robust, n)),
                "classes": _per_class(evaluation, held, "robust"),
            }
        )
    return found


def _per_class(evaluation: Evaluation, right: NDArray[np.bool_], key: str) -> list[dict[str, Any]]:
    """For every class that has images, how many of them are right."""
    counts, rights = per_class(evaluation.labels, right, len(evaluation.classes))
    return [
        {"class": name, "n": int(n), key: int(of_n)}
        for name, n, of_n in zip(evaluation.classes, counts, rights, strict=True)
        if n
    ]


def write(evaluation: Evaluation, document: dict[str, Any], folder: Path) -> None:
    """Write all files of one evaluated model into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)  # it comes back last: a folder that has one is complete
    with written_aside(folder / "samples.npz") as aside:
        np.savez_compressed(aside, **samples(evaluation))
    with written_aside(folder / "gallery.npz") as aside:
        np.savez_compressed(aside, **_gallery(evaluation))
    with (
        written_aside(folder / "results.csv") as aside,
        aside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        nested = ("params", "ci95", "stages", "flags")
        keys = [key for key in document["attacks"][0] if key not in nested] if document["attacks"] else []
        writer.writerow(["model", "clean_accuracy", *keys, "ci95_low", "ci95_high", "params", "flags"])
        for attack in document["attacks"]:
            values = [
                document["model"]["path"],
                document["clean"]["accuracy"],
                *(attack[key] for key in keys),
            ]
            interval = attack["ci95"] or (None, None)
            writer.writerow([*values, *interval, json.dumps(attack["params"]), "; ".join(attack["flags"])])
    write_json(folder / "results.json", document)


def samples(evaluation: Evaluation) -> dict[str, Any]:
    """Per image `index`, `label`, `clean_pred` and its fingerprint `image`; for each row `robust/<id>`,
    `adv_pred/<id>`, `l2/<id>`, `linf/<id>`."""
    arrays: dict[str, Any] = {
        "index": evaluation.index,
        "label": evaluation.labels,
        "clean_pred": evaluation.clean_pred,
        "image": fingerprints(evaluation.split),
    }
    for outcome in evaluation.outcomes:
        if unit := outcome.unit:
            name = outcome.row.id
            arrays |= {
                f"robust/{name}": unit.attacked & ~unit.broken,
                f"adv_pred/{name}": unit.adv_pred,
                f"l2/{name}": unit.l2,
                f"linf/{name}": unit.linf,
            }
            if unit.stages:
                arrays[f"broken_by/{name}"] = unit.broken_by
    return arrays


def _gallery(evaluation: Evaluation) -> dict[str, Any]:
    """At most 64 adversarial images that broke, with the clean ones: `clean`, `adversarial` `(G, C, H, W)`, `row`,
    `position` in the evaluated order, `label`, `adv_pred`."""
    shown = [
        (outcome, at) for outcome in evaluation.outcomes if outcome.unit for at in range(len(outcome.unit.gallery))
    ]
    shown = shown[:GALLERY_LIMIT]
    units = [outcome.unit for outcome, _ in shown if outcome.unit]
    places = np.array([unit.gallery_at[at] for unit, (_, at) in zip(units, shown, strict=True)], dtype=np.int64)
    shape = (0, *evaluation.predictor.input_shape)
    images = [unit.gallery[at] for unit, (_, at) in zip(units, shown, strict=True)]
    return {
        "clean": evaluation.split.take(places).astype(np.float32) / np.float32(255),
        "adversarial": np.stack(images) if images else np.zeros(shape, dtype=np.float32),
        "row": np.array([outcome.row.id for outcome, _ in shown], dtype=str),
        "position": places,
        "label": evaluation.labels[places],
        "adv_pred": np.array([unit.adv_pred[place] for unit, place in zip(units, places, strict=True)], dtype=np.int64),
    }
