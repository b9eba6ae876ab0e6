"""Robust accuracy against eps, from the distances of one search and beside AutoAttack's points; and as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from dgad_tk.answers.doubts import wilson
from evaluators.curves import Curve, ExactPoint, steps_of
from evaluators.engine.record import Evaluation
from evaluators.results import Results

CURVES = "curve.csv"
_HEAD = ("model", "row", "norm", "bound", "eps", "robust", "n", "robust_accuracy", "ci95_low", "ci95_high")


def curves_of(evaluation: Evaluation) -> list[Curve]:
    """The curve of each min-norm row of the model itself, in the row's own norm."""
    found = []
    for row, unit in evaluation.done:
        if row.eps is not None or row.surrogate is not None:
            continue
        n, right = len(unit.attacked), int(unit.attacked.sum())
        found.append(
            Curve(
                row=row.id,
                norm=row.norm,
                n=n,
                steps=steps_of(right, unit.distance[unit.broken].tolist()),
                exact=sorted(_exact(evaluation, row.norm, n), key=lambda point: point.eps),
            )
        )
    return found


def _exact(evaluation: Evaluation, norm: str, n: int) -> Iterator[ExactPoint]:
    """What AutoAttack left right on the same images, at each of its radii in this norm."""
    for row, unit in evaluation.done:
        same = row.norm == norm and row.surrogate is None and len(unit.attacked) == n
        if row.eps is not None and row.spec.autoattack == "whole" and same:
            robust = int((unit.attacked & ~unit.broken).sum())
            yield ExactPoint(row=row.id, eps=row.eps, robust_accuracy=robust / n, robust=robust, ci95=wilson(robust, n))


def curve_rows(results: Sequence[Results]) -> str:
    """Curves and points as CSV with a header; `bound` is `upper` for a step of a curve and `exact` for a point."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_HEAD)
    for found in results:
        for curve in found.curves:
            for step in curve.steps:
                share = step.robust / curve.n
                named = [found.model.path, curve.row, curve.norm, curve.bound, step.eps]
                writer.writerow([*named, step.robust, curve.n, share, *wilson(step.robust, curve.n)])
            for point in curve.exact:
                named = [found.model.path, point.row, curve.norm, "exact", point.eps]
                writer.writerow([*named, point.robust, curve.n, point.robust_accuracy, *point.ci95])
    return text.getvalue()


def forget_curves(folder: Path) -> None:
    """Delete the CSV of curves that an older evaluation left; another file of that name stays."""
    old = folder / CURVES
    if old.is_file() and old.read_bytes().startswith(",".join(_HEAD).encode()):
        old.unlink()
