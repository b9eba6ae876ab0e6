"""Checks of what ensembles tell stage by stage, and of INT8 files, whose rounding hides weakness from most attacks."""

from collections.abc import Sequence

import numpy as np

from evaluators.engine.record import Evaluation
from evaluators.engine.units import Unit
from evaluators.plan.rows import Row
from evaluators.results import Item
from evaluators.verdict.verdicts import at_most, by_gap

STANDARD = "square"
"""The last stage of standard AutoAttack."""


def of_stages(row: Row, unit: Unit) -> list[Item]:
    """What the stages after the standard ones found, which those had left."""
    if not row.spec.siblings or STANDARD not in unit.stages:
        return []
    share = float(np.mean(unit.broken & (unit.broken_by > unit.stages.index(STANDARD))))
    detail = f"the stages of {row.id} after AutoAttack's broke {share:.1%} of all images, which those had left"
    return [Item("beyond autoattack", at_most("warn", by_gap(share, len(unit.broken))), detail)]


def of_quantised(evaluation: Evaluation, rows: Sequence[tuple[Row, Unit]]) -> list[Item]:
    """Whether an INT8 file was attacked by way of a network that does not round.

    Args:
        rows: those of one radius.
    """
    if evaluation.predictor.precision != "int8" or not rows:
        return []
    beside = evaluation.predictor.siblings.items()
    siblings = [name for name, each in beside if each.module is not None and each.precision != "int8"]
    strongest = [row.id for row, _ in rows if row.surrogate is None and row.spec.siblings]
    if siblings and strongest:
        detail = f"{strongest[0]} also searched on {siblings[0]}, which does not round: rounding hid nothing from it"
        return [Item("quantised", "high", detail)]
    what = "no float32 sibling was searched on" if strongest else "autoattack-max with a float32 sibling did not run"
    detail = f"rounding hides from attacks what an INT8 file has in common with its float32 file; {what}"
    return [Item("quantised", "warn", detail)]
