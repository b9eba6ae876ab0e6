"""`--dry-run` and `--budget` of `dgad attack`: a time as people write it, and the plan as a table."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError, write_json

FILE = "budget.json"


def seconds_of(text: str, flag: str = "--budget") -> float:
    """`90s`, `10m`, `1h30m`, `1.5h` or a number of seconds.

    Raises:
        UserError: no time, or none at all.
    """
    number = r"(\d{1,9}(?:\.\d{1,9})?)"
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip().lower(), re.ASCII)
    parts = found.groups(default="0") if found else ("0", "0", "0")
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if seconds <= 0:
        raise UserError(
            f"{flag} must be a time such as 90s, 10m or 1h30m, got '{text}'", hint=f"for example {flag} 10m"
        )
    return seconds


def remembered(folder: Path, question: Mapping[str, Any]) -> int | None:
    """The number of images that was chosen for the same question before; None where none was.

    Times vary from run to run. The same command must go on with the images it began with, or it could not go on.

    Args:
        folder: of the results.
        question: everything that the choice hangs on, ready for JSON.
    """
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if kept["question"] == json.loads(json.dumps(question)) and type(kept["n"]) is int and kept["n"] > 0:
            return int(kept["n"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # none, or not whole: it is chosen again
    return None


def remember(folder: Path, question: Mapping[str, Any], n: int) -> None:
    """Keep the number of images that was chosen for `question`."""
    write_json(folder / FILE, {"question": question, "n": n})


def plan_table(plans: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print one table for all models: path and forecast of each, as `Forecast.to_dict` gives it."""
    from cli.table import plain_table

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
    from cli.progress import duration

    return duration(seconds) if seconds >= 1 or seconds == 0 else "under 1 s"
