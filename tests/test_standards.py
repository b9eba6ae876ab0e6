"""docs/standards.md names fields: each of them is in the schema of results.json."""

import re
from typing import Any

import pytest
from shared import ROOT

from evaluators.results import Results

TEXT = (ROOT / "docs" / "standards.md").read_text(encoding="utf-8")
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TEXT.splitlines() if re.match(r"\| (?!what it is about)", line)]
FIELDS = sorted({field for row in ROWS for field in re.findall(r"`([^`]+)`", row[1])})
SCHEMA = Results.model_json_schema(mode="serialization")


def step(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """What a key of an object leads to; lists and alternatives are looked into."""
    while "$ref" in schema or "items" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema["items"]
    return dict(schema["properties"][key])


@pytest.mark.parametrize("field", FIELDS)
def test_the_field_exists(field: str) -> None:
    place = SCHEMA
    for key in field.split("."):
        place = step(place, key)


def test_a_field_that_is_not_there_is_found_out() -> None:
    for wrong in ("clean.precision", "attacks.robust_accuracies", "gate"):
        with pytest.raises(KeyError):
            place = SCHEMA
            for key in wrong.split("."):
                place = step(place, key)


def test_every_point_says_what_it_leaves_open() -> None:
    assert len(ROWS) > 25
    for about, answer, open_ in ROWS:
        assert about.strip()
        assert open_.strip()
        assert re.fullmatch(r"(`[\w.]+`(, )?)*", answer.strip()), answer


def test_what_reviewers_ask_for_is_there() -> None:
    points = ("2.1:", "2.3:", "2.5:", "2.6:", "2.7:", "15(1)", "15(3)", "15(4)", "15(5)")
    for named in ("TR 24029-1:2021", "DIS 24029-3", *points):
        assert named in TEXT
