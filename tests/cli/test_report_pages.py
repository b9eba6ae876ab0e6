"""The pages of `dgad report` and `dgad attack`: where they are written, what is refused, what is left alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evidence_files import evidence_folder
from shared import BRIEF, Run, refused

from dgad_tk.common import UserError


def test_one_evaluation_has_its_page_beside_it(dgad: Run, tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path / "a")
    for named in (folder, folder / "results.json"):
        code, out, err = dgad("report", named)
        assert (code, out, err) == (0, f"{folder / 'report.html'}\n", "")
        assert "still right under attack" in (folder / "report.html").read_text()
        (folder / "report.html").unlink()
    code, out, _ = dgad("report", folder, "--output", tmp_path / "other.html", "--json")
    found = json.loads(out)
    assert code == 0
    assert found == {
        "schema": "dgad/report/1",
        "file": str(tmp_path / "other.html"),
        "format": "html",
        "size_bytes": (tmp_path / "other.html").stat().st_size,
    }


def test_several_share_a_page_in_the_current_folder(dgad: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [evidence_folder(tmp_path / name, path=f"{name}.onnx") for name in ("a", "b", "c")]
    monkeypatch.chdir(tmp_path)
    code, out, _ = dgad("report", *folders)
    assert (code, out) == (0, "report.html\n")
    assert "3 models: 60.0\N{NO-BREAK SPACE}% still right under attack." in Path("report.html").read_text()


def test_gates_are_on_the_page_and_do_not_fail(dgad: Run, tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path / "a")
    code, _, _ = dgad("report", folder, "--min", "clean=80%", "--min", "autoattack@0.2=70%", "--baseline", folder)
    page = (folder / "report.html").read_text()
    assert code == 0
    assert 'class="failed"' in page
    assert "required is at least 70%" in page
    assert page.count('class="passed"') > 3


def test_pages_of_other_people_are_left_alone(dgad: Run, tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path / "a")
    (folder / "report.html").write_text("<html>mine")
    refused(dgad("report", folder), "was not written by dgad")
    refused(dgad("report", folder, "--output", folder / "report.html"), "was not written by")
    attack = ("attack", "--model", "x.onnx", "--output", folder)
    refused(dgad(*attack), "no such file")
    assert (folder / "report.html").read_text() == "<html>mine"


def test_a_run_and_an_evaluation_share_no_page(dgad: Run, tmp_path: Path) -> None:
    folder, run = evidence_folder(tmp_path / "a"), tmp_path / "run"
    assert dgad("train", *BRIEF, "--quiet", "--out", run)[0] == 0
    refused(dgad("report", run, folder), "do not share a page")
    refused(dgad("report", run, "--min", "clean=50%"), "which no demand can be made of")
    refused(dgad("report", run, "--format", "md"), "which has only a page")
    (run / "report.html").unlink()
    code, out, _ = dgad("report", run)
    assert (code, out) == (0, f"{run / 'report.html'}\n")
    assert "epoch 1" in (run / "report.html").read_text()
    (run / "report.html").write_text("mine")
    refused(dgad("report", run), "was not written by dgad")


def test_damaged_arrays_are_one_line(dgad: Run, tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path / "a")
    (folder / "gallery.npz").write_bytes(b"PK\x03\x04 nothing")
    refused(dgad("report", folder), "gallery.npz' is damaged")


def test_the_page_has_the_curves_of_a_run_that_is_at_hand(
    dgad: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dgad("train", *BRIEF, "--quiet")[0] == 0
    (run,) = Path("runs").iterdir()
    code, out, err = dgad("attack", "--model", run / "best.safetensors", "--attack", "fgsm", "--limit", "20", "--quiet")
    assert code == 0, err
    page = Path(out.splitlines()[-1])
    assert page.name == "report.html"
    assert f"<bdi>{run}</bdi>" in page.read_text() or f"<td>{run}</td>" in page.read_text()
    assert "Accuracy by epoch" in page.read_text()
    (run / "config.yaml").write_text("damaged: [")
    assert dgad("report", page.parent)[0] == 0
    assert "Accuracy by epoch" not in page.read_text()


TWO = ["attack", "--model", "a.safetensors", "--model", "b.safetensors", "--limit", "20", "--quiet", "--output", "m"]
TWO += ["--attack", "transfer:fgsm", "--surrogate", "a.safetensors"]


def test_the_page_of_several_models_is_written_over_nobody_elses(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("work has begun")

    for name in ("a", "b"):
        shutil.copy(weights, f"{name}.safetensors")
    Path("m").mkdir()
    Path("m/report.html").write_text("<html>mine")
    with monkeypatch.context() as patch:
        patch.setattr("evaluators.engine.evaluate.evaluate", never)
        refused(dgad(*TWO), "'m/report.html' exists and was not written by dgad")
    assert Path("m/report.html").read_text() == "<html>mine"
    assert dgad(*TWO, "--dry-run")[0] == 0  # writes nothing
    Path("m/report.html").unlink()
    for _ in range(2):  # its own page may be replaced
        code, out, err = dgad(*TWO)
        assert code == 0, err
        assert out.splitlines()[-1] == "m/report.html"
    assert len(list(Path("m").rglob("report.html"))) == 3


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (ZeroDivisionError("in the page"), 3, "in the page"),
        (OSError(28, "No space left on device"), 0, "No space left on device"),
        (UserError("a file is damaged", hint="again"), 0, "a file is damaged"),
    ],
)
def test_a_page_costs_no_results(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch, models: int, error: Exception, expected: int, reason: str
) -> None:
    """Everything else is written and printed first; only a bug in a page ends in another exit code."""

    def broken(*arguments: Any) -> None:
        raise error

    for name in ("a", "b"):
        shutil.copy(weights, f"{name}.safetensors")
    command = TWO if models == 2 else [*TWO[:3], *TWO[5:], "--surrogate", "b.safetensors"]
    code, printed, err = dgad(*command)
    assert code == 0, err
    files = {path for path in Path("m").rglob("*") if path.is_file() and path.suffix in (".json", ".csv", ".npz")}
    pages = sorted(Path("m").rglob("report.html"))
    assert printed.splitlines()[-1] == "m/report.html"
    monkeypatch.setattr("evaluators.report.evaluation.page.write_report", broken)
    for more in ([], ["--json"]):
        shutil.rmtree("m")
        code, out, err = dgad(*command, *more)
        assert code == expected, err
        assert {path for path in Path("m").rglob("*") if path in files} == files
        assert len(list(Path("m").rglob("matrix.json"))) == 1
        assert not list(Path("m").rglob("report.html"))
        warned = [line for line in err.splitlines() if line.startswith("warning:")]
        said = f"was not written, the results are complete: {reason}"
        assert len(warned) == len(pages)
        assert all(f"warning: {page} " in err for page in pages)
        assert all(reason in line and said.split(":")[0] in line for line in warned)
        assert ("ZeroDivisionError: in the page" in err) == (expected == 3)
        if more:
            assert (len(json.loads(out)) if models == 2 else json.loads(out)["schema"]) in (2, "dgad/results/1")
        else:
            assert "transfer:" in out
            assert "report.html" not in out


def test_an_older_page_does_not_stay_beside_newer_results(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    shutil.copy(weights, "a.safetensors")
    command = ["attack", "--model", "a.safetensors", "--limit", "20", "--quiet", "--output", "m", "--attack", "fgsm"]
    assert dgad(*command)[0] == 0
    monkeypatch.setattr("evaluators.report.evaluation.page.write_report", full)
    assert dgad(*command, "--eps", "0.05")[0] == 0
    assert not Path("m/report.html").exists()
