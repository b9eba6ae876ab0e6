"""The table of preprocessings that `dgad inspect` prints, and its JSON."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli.printing.results_table import interval_text, share_text
from cli.printing.terminal import plain_table, say
from dgad_tk.strangers.names import shown

if TYPE_CHECKING:
    from dgad_tk.artifacts.preprocessing import Interface
    from evaluators.preprocessings.finding import Finding

MOST_ROWS = 12
"""Rows that are printed; the JSON has all."""


def flags_of(interface: "Interface") -> list[str]:
    """The flags that say how images are changed, as `cli.flags.preprocessing` reads them.

    None for images as they are. The layout is left out: it is what the file was opened with.
    """
    from dgad_tk.artifacts.preprocessing import UNIT_RANGE

    flags = []
    if interface.input_range != UNIT_RANGE:
        flags += ["--input-range", "-".join(f"{end:g}" for end in interface.input_range)]
    for flag, values in (("--mean", interface.mean), ("--std", interface.std)):
        flags += [flag, ",".join(f"{value:g}" for value in values)] if values else []
    return flags + (["--channel-order", "bgr"] if interface.channel_order == "bgr" else [])


def preprocessings_table(finding: "Finding", said: Sequence[str], command: Sequence[str]) -> None:
    """Print the rows, best first, what they say, and the command to copy, where there is one."""
    from evaluators.preprocessings.words import name_of

    rows = []
    for row in finding.rows[:MOST_ROWS]:
        flags = shlex.join(flags_of(row.candidate.interface)) or "(none)"
        mark = "" if not row.leads or finding.verdict == "none" else "best" if finding.verdict == "found" else "tied"
        cells = [share_text(row.accuracy), interval_text(row.ci95), f"{row.n:,}"]
        rows.append([name_of(row), flags, mark, "another" if row.order is not None else "", *cells])
    headings = ["preprocessing", "flags", "", "order of classes", "right", "95 % interval", "images"]
    if not any(row[3] for row in rows):
        headings, rows = [*headings[:3], *headings[4:]], [[*row[:3], *row[4:]] for row in rows]
    plain_table(headings, rows, left=3)
    if (more := len(finding.rows) - MOST_ROWS) > 0:
        say(f"and {more} more, which are worse (--json)")
    for sentence in said:
        say(sentence)
    if command:
        print(shown(shlex.join(command)))  # whole, to be copied


def preprocessings_json(
    finding: "Finding", said: Sequence[str], command: Sequence[str], classes: Sequence[str] | None
) -> dict[str, Any]:
    """The same as JSON values."""
    from evaluators.preprocessings.words import name_of

    return {
        "verdict": finding.verdict,
        "guessing": finding.guessing,
        "rows": [
            {
                "name": name_of(row),
                "flags": flags_of(row.candidate.interface),
                "n": row.n,
                "correct": row.correct,
                "accuracy": row.accuracy,
                "ci95": row.ci95,
                "order": row.order.reason if row.order is not None else "",
                "leads": row.leads and finding.verdict != "none",
            }
            for row in finding.rows
        ],
        "said": list(said),
        "classes": classes,
        "command": list(command),
    }
