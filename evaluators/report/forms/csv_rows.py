"""Attacks as CSV, one per line: the results.csv of an evaluation, and that of several together.

Names are exact: what reads the file gets back the paths, ids and reasons of results.json. So a name that begins with
`=` or `+` is one here too, and a spreadsheet may take it for a formula: import such columns as text.
"""

import csv
import io
import json
from collections.abc import Sequence

from evaluators.results import Attack, Results

MARK = "model,clean_accuracy,"
_APART = ("autoattack", "description", "params", "ci95", "stages", "flags")
_KEYS = [key for key in Attack.model_fields if key not in _APART]


def csv_rows(results: Sequence[Results]) -> str:
    """The attacks of all results under one header. Line ends are those of RFC 4180."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["model", "clean_accuracy", *_KEYS, "ci95_low", "ci95_high", "params", "flags"])
    for found in results:
        for attack in found.attacks:
            values = [found.model.path, found.clean.accuracy, *(getattr(attack, key) for key in _KEYS)]
            interval = attack.ci95 or (None, None)
            writer.writerow([*values, *interval, json.dumps(attack.params), "; ".join(attack.flags)])
    return text.getvalue()
