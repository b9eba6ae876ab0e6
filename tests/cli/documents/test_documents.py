"""What commands print with `--json` is one document on stdout, and valid by its own JSON Schema."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel
from shared import BRIEF, Run, refused

from cli.app import COMMANDS
from cli.commands.list import TABLES
from cli.documents.base import Part
from cli.documents.table import DOCUMENTS, json_schema
from evaluators.results import Results


def checked(document: Any, schema: str) -> dict[str, Any]:
    """The document, which says what it is and is that."""
    assert document["schema"] == schema
    assert next(iter(document)) == "schema"
    jsonschema.Draft202012Validator(json_schema(schema)).validate(document)
    found: dict[str, Any] = document
    return found


def printed(result: tuple[int, str, str], schema: str) -> dict[str, Any]:
    """The one document on stdout."""
    code, out, err = result
    assert code == 0, err
    return checked(json.loads(out), schema)


def test_train_export_and_attack(dgad: Run, tmp_path: Path) -> None:
    """One after the other, as `dgad quickstart` runs them; and what reads their files."""
    code, out, err = dgad("train", *BRIEF, "--json")
    trained = printed((code, out, err), "dgad/train/1")
    assert trained["run"] == "runs/digits-dgad-resnet8"
    assert "resnet8 by dgad" in err

    written = printed(dgad("export", "--json"), "dgad/export/1")
    assert written["sets"]["clean"]["agreement"] == 1.0

    question = ["attack", "--model", "student.onnx", "--attack", "pgd", "--limit", "10", "--json"]
    forecast = printed(dgad(*question, "--dry-run"), "dgad/forecast/1")
    assert forecast["model"] == "student.onnx"
    assert [row["id"] for row in forecast["rows"]] == ["clean, checks", "pgd"]
    assert [each["name"] for each in forecast["choices"]] == ["quick", "standard", "max"]

    results = printed(dgad(*question), "dgad/results/1")
    (file,) = Path("attacks").glob("*/results.json")
    assert json.loads(file.read_text()) == results

    gated = printed(dgad("gate", file, "--min", "clean=0%", "--json"), "dgad/results/1")
    assert [gate["passed"] for gate in gated["gates"]] == [True]

    out = dgad("inspect", "student.onnx", "--json")[1]
    assert dgad("inspect", "student.onnx")[1] == out
    inspected = printed((0, out, ""), "dgad/inspect/1")
    jsonschema.validate(inspected["metadata"], json_schema("artifact"))

    plain = ["bench", "student.onnx", "--seconds", "0.05", "--threads", "1", "--batch", "1", "--json", "--quiet"]
    assert "robust" not in printed(dgad(*plain), "dgad/bench/1")["files"][0]
    benched = printed(dgad(*plain, "--robust", "--limit", "10"), "dgad/bench/1")
    assert benched["files"][0]["robust"]["status"] == "done"


def test_two_models_are_a_list_and_leave_a_matrix(dgad: Run, weights: Path) -> None:
    shutil.copy(weights, "a.safetensors")
    question = ["attack", "--model", "a.safetensors", "--model", weights, "--limit", "10", "--json", "--quiet"]
    code, out, err = dgad(*question, "--attack", "transfer:fgsm", "--surrogate", weights)
    assert code == 0, err
    assert [checked(each, "dgad/results/1")["dataset"]["n"] for each in json.loads(out)] == [10, 10]
    checked(json.loads(Path("attacks/matrix.json").read_text()), "dgad/matrix/1")
    code, out, err = dgad(*question, "--attack", "fgsm", "--dry-run")
    assert code == 0, err
    assert [checked(each, "dgad/forecast/1")["n"] for each in json.loads(out)] == [10, 10]


@pytest.mark.parametrize("what", TABLES)
def test_lists(dgad: Run, what: str) -> None:
    listed = printed(dgad("list", what, "--json"), "dgad/list/1")
    assert listed["table"] == what
    code, out, _ = dgad("list", what)
    assert code == 0
    for row in listed["rows"]:
        assert f"{row['name']} " in out
        assert all(f"{key}={value}" in out for key, value in row["options"].items())


def test_quickstart_has_a_line_per_command(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three commands, made short."""
    from cli import app

    short = (("train", *BRIEF), ("export",), ("attack", "--model", "student.onnx", "--attack", "fgsm", "--limit", "5"))
    monkeypatch.setattr(app, "QUICKSTART", short)
    code, out, err = dgad("quickstart", "--json")
    assert code == 0, err
    documents = [json.loads(line) for line in out.splitlines()]
    for document, schema in zip(documents, ["dgad/train/1", "dgad/export/1", "dgad/results/1"], strict=True):
        checked(document, schema)
    assert "$ dgad attack --model student.onnx" in err


def test_every_command_takes_json() -> None:
    import inspect

    assert [name for name, command in COMMANDS.items() if "as_json" not in inspect.signature(command).parameters] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_is_one_and_names_its_document(dgad: Run, name: str) -> None:
    code, out, err = dgad("list", "schema", name)
    assert code == 0, err
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json.loads(dgad("list", "schema", name.split("/")[1])[1])
    assert "schema" in schema["properties"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": "somebody/else"}, schema)


def test_without_a_name_it_is_that_of_results(dgad: Run) -> None:
    assert json.loads(dgad("list", "schema")[1]) == Results.model_json_schema(mode="serialization")


def test_wrong_names(dgad: Run) -> None:
    refused(dgad("list", "schema", "exprot"), "unknown schema 'exprot'")
    refused(dgad("list", "attacks", "pgd"), "`dgad list attacks` takes no name, got 'pgd'")


def parts(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [part for each in model.__subclasses__() for part in (each, *parts(each))]


def test_every_key_has_a_sentence() -> None:
    assert len(parts(Part)) > 10
    for part in parts(Part):
        for name, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{name}"
            assert field.description.endswith("."), f"{part.__name__}.{name}"


def test_a_key_that_is_not_described_is_noticed(dgad: Run, weights: Path) -> None:
    document = printed(dgad("inspect", weights), "dgad/inspect/1")
    with pytest.raises(jsonschema.ValidationError, match="'more' was unexpected"):
        checked(document | {"more": 1}, "dgad/inspect/1")
