"""`--dry-run` and `--budget` of `dgad attack`: a time as people write it, and the plan as a table."""

from collections.abc import Mapping, Sequence
from typing import Any


def plan_table(plans: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print one table for all models: path and forecast of each, as `Forecast.to_dict` gives it."""
    from cli.printing.results_table import plain_table

    lines, notes = [], []
    for path, plan in plans:
        for row in [*plan["rows"], {"id": "total", "images": plan["n"], "seconds": plan["seconds"], "note": ""}]:
            if row["note"]:
                notes.append(f"{path}: {row['id']} {row['note']}")
            else:
                lines.append([path, row["id"], f"{row['images']:,}", _time(row["seconds"])])
    plain_table(["model", "attack", "images", "time"], lines, left=2)
    print("\n".join([*notes, *(f"{path}: {summary(plan)}" for path, plan in plans)]))


def summary(plan: Mapping[str, Any]) -> str:
    """How many images, how long, and how sure the result will be."""
    about = "about " if plan["seconds"] >= 1 else ""
    return (
        f"{plan['n']:,} images in {about}{_time(plan['seconds'])}, extrapolated from {plan['pilot_images']:,}: "
        f"shares to ±{plan['half_width'] * 100:.1f} points (95 % Wilson interval)"
    )


def _time(seconds: float) -> str:
    from cli.printing.progress import duration

    return duration(seconds) if seconds >= 1 or seconds == 0 else "under 1 s"
