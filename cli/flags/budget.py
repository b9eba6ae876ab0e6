"""`--budget`: a time as people write it, and how many images it was found to be enough for."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError, write_json

FILE = "budget.json"


def seconds_of(text: str) -> float:
    """`90s`, `10m`, `1h30m`, `1.5h` or a number of seconds.

    Raises:
        UserError: the text is no time, or the time is zero.
    """
    number = r"(\d{1,9}(?:\.\d{1,9})?)"
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip().lower(), re.ASCII)
    parts = found.groups(default="0") if found else ("0", "0", "0")
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if seconds <= 0:
        raise UserError(
            f"--budget must be a time such as 90s, 10m or 1h30m, got '{text}'", hint="for example --budget 10m"
        )
    return seconds


def remembered(folder: Path, question: Mapping[str, Any]) -> int | None:
    """The number of images that was chosen for the same question before; None if none was.

    Times vary from run to run, and the same command has to go on with the images that it began with.

    Args:
        folder: of the results.
        question: everything that the choice depends on, ready for JSON.
    """
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if kept["question"] == json.loads(json.dumps(question)) and type(kept["n"]) is int and kept["n"] > 0:
            return int(kept["n"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is damaged: the number is chosen again
    return None


def remember(folder: Path, question: Mapping[str, Any], n: int) -> None:
    """Keep the number of images that was chosen for `question`."""
    write_json(folder / FILE, {"question": question, "n": n})
