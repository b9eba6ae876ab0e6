"""CSV, read by the standard library's reader."""

import csv
import io
import json

import pytest
from sample_results import HOSTILE, hostile, sample

from evaluators.report.forms.csv_rows import csv_rows


@pytest.mark.parametrize("name", HOSTILE)
def test_names_come_back_as_they_were(name: str) -> None:
    found = hostile(name)
    rows = list(csv.DictReader(io.StringIO(csv_rows([found]), newline="")))
    assert [each["model"] for each in rows] == [name] * 3
    assert [each["id"] for each in rows] == [attack.id for attack in found.attacks]
    assert rows[1]["flags"] == f"flag of {name}"


def test_all_results_stand_under_one_header() -> None:
    lines = csv_rows([sample(), sample()]).splitlines()
    assert len(lines) == 1 + 2 * 5
    rows = list(csv.DictReader(lines))
    assert [float(each["robust_accuracy"]) for each in rows if each["id"] == "autoattack"] == [0.384] * 2
    assert json.loads(rows[0]["params"]) == {"steps": 10}
    assert (rows[0]["ci95_low"], rows[2]["ci95_low"]) == ("0.37", "")
    assert rows[4]["reason"] == "there is no surrogate"
