"""Results and their records made of given answers, without a model or an attack."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from dgad_tk.answers.doubts import wilson
from evaluators.results import (
    Attack,
    Checks,
    Clean,
    CleanClass,
    Dataset,
    Item,
    Model,
    Results,
    Threat,
    Verdict,
)
from evaluators.verdict.records import Record

CLASSES = ("cat", "dog", "owl")


def row(id: str = "pgd", eps: float | None = 0.1, **more: Any) -> Attack:
    """A row of an evaluation; what is not given is filled in by `answered`."""
    kind = "min-norm" if eps is None else "budget"
    fields = {"id": id, "name": id.partition("@")[0], "source": "white-box", "surrogate": None, "params": {}}
    given = {"kind": kind, "norm": "linf", "eps": eps, "n": 0, "status": "done", "reason": ""}
    return Attack(**{**fields, **given, **more})


def answered(
    label: Sequence[int],
    clean: Sequence[int],
    attacked: Mapping[str, Sequence[int]],
    rows: Sequence[Attack] = (row(),),
    *,
    model: str = "a.onnx",
    index: Sequence[int] | None = None,
    classes: Sequence[str] = CLASSES,
    dataset: str = "pets",
    verdict: Verdict = "high",
    seed: int = 0,
) -> Record:
    """The record of a model that answers `label`ed images so.

    Args:
        attacked: by id, its answers under each row that is done; a row may have looked at the first images only.
    """
    labels, answers = np.array(label, dtype=np.int64), np.array(clean, dtype=np.int64)
    places = np.arange(len(labels)) if index is None else np.array(index)
    found = {key: np.array(each, dtype=np.int64) for key, each in attacked.items()}
    right = answers == labels
    held = {key: right[: len(each)] & (each == labels[: len(each)]) for key, each in found.items()}
    present = np.unique(labels).tolist()
    counts = [(int((labels == k).sum()), int((right & (labels == k)).sum())) for k in present]
    results = Results(
        created="2026-01-01T00:00:00+00:00",
        command=f"dgad attack --model {model}",
        model=Model(path=model, sha256=sha256(model.encode()).hexdigest(), format="onnx", metadata=None),
        dataset=Dataset(name=dataset, split="test", n=len(labels), sha256="0" * 64, classes=list(classes)),
        threat=Threat(norm="linf", eps=sorted({each.eps for each in rows if each.eps is not None})),
        seed=seed,
        clean=Clean(
            accuracy=float(right.mean()),
            correct=int(right.sum()),
            n=len(labels),
            classes=[CleanClass(class_=classes[k], n=n, right=of) for k, (n, of) in zip(present, counts, strict=True)],
        ),
        attacks=[_filled(each, held) for each in rows],
        worst_case=[],
        twin={},
        checks=Checks(verdict=verdict, items=[Item("twin", verdict, "the twin differs")]),
        environment={},
    )
    fingerprints = (places * 7 + labels).astype(np.uint64)
    shown = {key: np.where(right[: len(each)], each, answers[: len(each)]) for key, each in found.items()}
    return Record(results, places, fingerprints, right, held, labels, answers, shown)


def _filled(each: Attack, held: Mapping[str, np.ndarray]) -> Attack:
    if each.id not in held:
        return each
    robust, n = int(held[each.id].sum()), len(held[each.id])
    return each.model_copy(update={"n": n, "robust": robust, "robust_accuracy": robust / n, "ci95": wilson(robust, n)})


def stored(record: Record, folder: Path) -> Path:
    """The folder of results.json and samples.npz."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record.results.to_dict()), encoding="utf-8")
    arrays: dict[str, Any] = {"index": record.index, "label": record.label, "clean_pred": record.answer}
    arrays |= {f"robust/{key}": each for key, each in record.robust.items()}
    arrays |= {f"adv_pred/{key}": each for key, each in record.attacked.items()}
    np.savez(folder / "samples.npz", image=record.image, **arrays)
    return folder
