"""`dgad compare`: what it prints, what it writes, what it refuses, and that it needs no torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from answered import answered, row, stored
from rich.cells import cell_len
from shared import ROOT, Run, refused
from terminals import run_on_terminal
from victims import TwoClassLinear, as_torch, linear_split

from cli.commands.compare import MODELS
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.report.files import results, write
from evaluators.verdict.comparison.document import Comparison
from exporters.formats import LOADERS

LABEL = [0, 1, 2] * 10


def model(folder: Path, lost: int, *, path: str, n: int = 30, **more: object) -> Path:
    """Stored results of a model that is right on clean images, and that pgd breaks on `lost` of them, fgsm on fewer."""
    rows = [row("fgsm"), row("pgd")]
    label = LABEL[:n]
    answers = {
        "fgsm": [0 if at < lost // 2 else label[at] for at in range(n)],
        "pgd": [(label[at] + 1) % 3 if at < lost else label[at] for at in range(n)],
    }
    return stored(answered(label, label, answers, rows, model=path, **more), folder)  # type: ignore[arg-type]


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A student in three formats."""
    names = {"fp32": 0, "fp16": 1, "int8": 12}
    return [model(tmp_path / name, lost, path=f"student.{name}.onnx") for name, lost in names.items()]


def test_in_plain_words(dgad: Run, three: list[Path]) -> None:
    code, out, err = dgad("compare", *three)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        "30 images of pets test, seen by all",
        "[1] student.fp32.onnx (onnx), the reference",
        "[2] student.fp16.onnx (onnx)",
        "[3] student.int8.onnx (onnx)",
    ]
    assert (
        "No difference shown in robustness under the worst attack at 0.1: student.fp16.onnx -3.3 points "
        "(-11.7 to +5.5), 1 of 30 images differs, p = 1."
    ) in lines
    assert (
        "student.int8.onnx is 40.0 points less robust than student.fp32.onnx under the worst attack at 0.1 "
        "(-55.4 to -19.6): it lost 12 and won 0 of 30 images, more than chance explains, p = 0.0005, and 0.0039 "
        "adjusted for 8 tests."
    ) in lines
    assert re.search(r"^worst-case +100\.0% +60\.0% +12 +0 +-40\.0 +-55\.4 to -19\.6 +0\.0005 +0\.0039$", out, re.M)
    assert "worst-case, of 3 classes: 'cat' lost most, 100.0% to 60.0%, -40.0 points" in out
    assert "worst-case lost: 0 ('cat' answered 'dog'), 1 ('dog' answered 'cat')" in out
    assert "and 6 more, with --json" in out
    assert re.search(r"^worst-case +30 +\[2\] 29 +96\.7% +83\.3% to 99\.4%$", out, re.M)
    assert re.search(r"^ +all 18 +60\.0% ", out, re.M)
    assert "Holm: p adjusted for 8 tests." in out


def test_fits_80_columns(tmp_path: Path) -> None:
    rows = [row(f"transfer:resnet20-{number}:fgsm", name="fgsm", surrogate=f"resnet20-{number}") for number in (1, 2)]
    folders = []
    for name, answer in (("a" * 90, 0), ("b", 1)):
        answers = {each.id: [answer] * 30 for each in rows}
        folders.append(stored(answered([0] * 30, [0] * 30, answers, rows, model=f"{name}.onnx"), tmp_path / name))
    code, screen = run_on_terminal(["compare", *map(str, folders)], 80, tmp_path, NO_COLOR="1")
    assert code == 0
    assert max(map(cell_len, screen.lines)) <= 80
    assert "<0.0001" in screen.text
    assert "resnet20-1" in screen.text


def test_json_is_the_document(dgad: Run, three: list[Path]) -> None:
    code, out, _ = dgad("compare", *three, "--json")
    assert code == 0
    document = json.loads(out)
    found = Comparison.model_validate(document)
    assert document["schema"] == "dgad/compare/1"
    assert [(each["number"], each["file"]) for each in document["results"]] == [
        (number, str(path)) for number, path in enumerate(three, 1)
    ]
    assert document["command"] == " ".join(["dgad", "compare", *map(str, three), "--json"])
    assert len(found.pairs[1].tests[-1].changes) == 12
    assert list(document["pairs"][1]["tests"][-1]["classes"][0]) == [
        "class",
        "n",
        "reference_right",
        "right",
        "difference",
        "ci95",
    ]
    schema = Comparison.model_json_schema(mode="serialization")
    parts = {"Comparison": schema, **schema["$defs"]}
    del parts["Item"]  # of results.json
    silent = [
        (name, key)
        for name, part in parts.items()
        for key, field in part["properties"].items()
        if "description" not in field
    ]
    assert silent == []


def test_an_evaluation_of_a_model_and_of_its_neighbour(dgad: Run, tmp_path: Path) -> None:
    """Files as `dgad attack` writes them; what is lost and won is known in closed form."""
    images, split = linear_split(40).take(slice(None)) / np.float32(255), linear_split(40)
    held, folders = [], []
    for name, shift in (("old", 0.0), ("new", 0.4)):
        module = TwoClassLinear().requires_grad_(False)
        module.b += shift
        eps = 0.02
        evaluation = evaluate(as_torch(module), split, plan(("fgsm", "pgd"), norm="linf", eps=[eps]), batch_size=40)
        write(evaluation, results(evaluation, command="", dataset="linear", split="test"), tmp_path / name)
        folders.append(tmp_path / name / "results.json")
        held.append(evaluation.clean_right & (module.margins(images, "linf") > eps))
    code, out, err = dgad("compare", *folders, "--json")
    assert code == 0, err
    tests = {each["name"]: each for each in json.loads(out)["pairs"][0]["tests"]}
    lost, won = int((held[0] & ~held[1]).sum()), int((held[1] & ~held[0]).sum())
    assert lost + won > 0
    for name in ("fgsm", "pgd", "worst-case"):
        assert (tests[name]["lost"], tests[name]["won"]) == (lost, won)


def test_the_page(dgad: Run, three: list[Path]) -> None:
    code, out, _ = dgad("compare", *three, "--output", "new/compare.html")
    assert code == 0
    assert out.splitlines()[-1] == "new/compare.html"
    page = Path("new/compare.html")
    first = page.read_text(encoding="utf-8")
    assert "student.int8.onnx" in first
    code, out, err = dgad("compare", *three[:2], "--output", page, "--json")  # its own page is replaced
    assert code == 0
    assert json.loads(out)["schema"] == "dgad/compare/1"
    assert err == "new/compare.html\n"
    assert "student.int8.onnx" not in page.read_text(encoding="utf-8")


def test_a_smaller_run_is_compared_on_its_images(dgad: Run, tmp_path: Path) -> None:
    few = model(tmp_path / "few", 2, path="few.onnx", n=12)
    many = model(tmp_path / "many", 3, path="many.onnx")
    code, out, _ = dgad("compare", few, many)
    assert code == 0
    assert out.startswith("12 images of pets test, seen by all\n")
    assert "note: many.onnx saw 30 images: everything here is of the 12 that all saw\n" in out


def test_what_is_refused(dgad: Run, three: list[Path], tmp_path: Path) -> None:
    one = three[0]
    for name in ("student.onnx", "run/best.safetensors", "theirs.html", "empty/nothing"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("theirs", encoding="utf-8")
    lonely = model(tmp_path / "lonely", 1, path="b.onnx")
    (lonely / "samples.npz").unlink()
    other = stored(answered([1, 1], [1, 1], {"pgd": [1, 1]}), tmp_path / "other")
    beside = model(tmp_path / "beside", 1, path="b.onnx", index=range(21, 51))
    for arguments, message, hint in [
        ([one], "one result is given", "the first is what"),
        ([one, one / "results.json"], "is given twice", "from itself"),
        ([one, "student.onnx"], "'student.onnx' is no results", "`dgad attack --model student.onnx` first"),
        (["run", one], "'run' is no results", "`dgad attack --model run/best.safetensors` first"),
        ([one, "missing"], "no such file: 'missing'", "dgad attack"),
        ([one, "empty"], "no such file: 'empty/results.json'", "dgad attack"),
        ([one, "theirs.html"], "was not written by `dgad attack`", "dgad attack"),
        ([one, lonely], "no such file: ", "both files are needed"),
        ([one, other], "under 1 of 2 shared places", "same files"),
        ([one, beside], "saw 30 images and ", "--limit"),
        ([*three, "--output", "theirs.html"], "exists and is no page of dgad", "choose another"),
        ([*three, "--output", "page.txt"], "must end in .html", "--output page.html"),
        ([*three, "--output", "empty"], "must end in .html", "--output empty.html"),
    ]:
        result = dgad("compare", *arguments)
        refused(result, message)
        assert hint in result[2].splitlines()[1]
    Path("folder.html").mkdir()
    refused(dgad("compare", *three, "--output", "folder.html"), "is a folder")
    assert Path("theirs.html").read_text(encoding="utf-8") == "theirs"
    assert "they share 9" in dgad("compare", one, beside)[2]


def test_models_are_the_files_that_attack_opens() -> None:
    assert set(MODELS) == set(LOADERS)


def test_names_of_strangers(dgad: Run, tmp_path: Path) -> None:
    """Escape codes, markup and lines of their own reach neither the terminal nor the page."""
    hostile = "\x1b[31m[bold]<script>\n"
    classes = (hostile, "dog", "owl")
    folders = [
        model(tmp_path / name, lost, path=f"{name}{hostile}.onnx", classes=classes)
        for name, lost in (("a", 0), ("b", 9))
    ]
    code, out, _ = dgad("compare", *folders, "--output", "page.html")
    assert code == 0
    assert "\x1b" not in out
    assert r"'\x1b[31m[bold]<script>\n' answered 'dog'" in out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page


def test_needs_neither_torch_nor_onnx(three: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from cli.app import run; "
        f"assert run(['compare', *{[str(path) for path in three]!r}, '--output', 'page.html']) == 0; "
        "print([name for name in ('torch', 'torchvision', 'art', 'onnx', 'onnxruntime', 'sklearn') "
        "if name in sys.modules])"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "page.html").is_file()
