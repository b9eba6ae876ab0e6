"""`dgad report`: where each form goes, what is refused, and what a real evaluation looks like in all of them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from sample_results import hostile, sample
from shared import ROOT, Run, Victim, artifact, refused

from cli.commands.report import report
from dgad_tk.artifacts.weights import save_weights
from dgad_tk.common import UserError, write_json
from evaluators.report.forms.table import FORMS, Text
from evaluators.results import Results

TEXTS = [name for name, form in FORMS.items() if isinstance(form, Text)]


def kept(folder: Path, found: Results | None = None) -> Path:
    """A folder with results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", (found or sample()).to_dict())
    return folder


@pytest.mark.parametrize("form", TEXTS)
def test_text_goes_to_stdout_or_into_a_file(dgad: Run, tmp_path: Path, form: str) -> None:
    folder = kept(tmp_path / "ours")
    code, out, err = dgad("report", folder, "--format", form)
    assert code == 0, err
    assert "\nnote: " not in out
    assert [line for line in err.splitlines() if not line.startswith("note: ")] == []
    assert FORMS[form].mark in out[:1000]
    code, said, _ = dgad("report", folder / "results.json", "--format", form, "--output", "deep/file.txt")
    assert (code, said) == (0, "deep/file.txt\n")
    assert Path("deep/file.txt").read_bytes().decode() == out
    code, said, _ = dgad("report", folder, "--format", form, "--output", "deep/file.txt", "--json")  # ours: replaced
    assert code == 0
    size = Path("deep/file.txt").stat().st_size
    told = {"schema": "dgad/report/1", "file": "deep/file.txt", "format": form, "size_bytes": size}
    assert json.loads(said) == told


@pytest.mark.parametrize("form", ["csv", "md"])
def test_line_ends_on_stdout_are_those_of_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Also where the system's text streams, as those of Windows, write two characters for each."""
    folder = kept(tmp_path / "ours")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252", newline="\r\n"))
    report([folder], form=form)
    text = written.getvalue().decode("utf-8")
    assert text == FORMS[form].text([sample()])  # type: ignore[union-attr]
    assert "\r\r\n" not in text


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_somebody_else_is_left_alone(dgad: Run, tmp_path: Path, form: str) -> None:
    folder = kept(tmp_path / "ours")
    Path("theirs").write_text("a letter")
    refused(dgad("report", folder, "--format", form, "--output", "theirs"), "'theirs' exists and was not written by")
    assert Path("theirs").read_text() == "a letter"
    refused(dgad("report", folder, "--format", form, "--output", tmp_path), "is a folder")


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("other", TEXTS)
def test_a_form_of_another_kind_is_left_alone_too(form: str, other: str) -> None:
    """So marks must differ."""
    assert form == other or FORMS[form].mark not in FORMS[other].text([sample()])[:1000]  # type: ignore[union-attr]


def test_what_is_refused(dgad: Run, tmp_path: Path) -> None:
    folder = kept(tmp_path / "ours")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    for arguments, message in [
        ([folder, "--format", "pdf"], "unknown format 'pdf'"),
        ([folder, "--format", "md", "--json"], "--json tells which file was written"),
        ([tmp_path / "none"], "no such file"),
        ([tmp_path / "run", "--format", "md"], "is a training run, which has only a page"),
        ([folder, folder, "--format", "robustbench"], "of one model, got 2 results"),
        ([folder, "--format", "md", "--min", "pgd=45"], "--min pgd must be a rate"),
        ([folder, "--format", "md", "--max-drop", "1%"], "no --baseline"),
        ([folder, "--format", "md", "--baseline", folder], "no such file"),  # without samples.npz
    ]:
        refused(dgad("report", *arguments), message)


def test_gates_are_shown_and_do_not_fail(dgad: Run, tmp_path: Path) -> None:
    folder = kept(tmp_path / "ours")
    demands = ("--min", "worst-case=40%", "--min", "clean=70%")
    code, out, _ = dgad("report", folder, "--format", "md", *demands)
    assert code == 0
    assert "| `worst-case` | **FAILED** | 38.4% (384 of 1,000) | at least 40% |" in out
    assert "| `clean` | passed | 71.2% (712 of 1,000) | at least 70% |" in out
    code, out, _ = dgad("gate", folder, *demands, "--json")
    assert code == 1
    judged = kept(tmp_path / "judged", Results.model_validate_json(out))
    code, again, _ = dgad("report", judged, "--format", "md")
    assert (code, "**FAILED**" in again) == (0, True)  # gates that came with the results stay
    _, sarif, _ = dgad("report", judged, "--format", "sarif")
    (run,) = json.loads(sarif)["runs"]
    assert [each["ruleId"] for each in run["results"]] == ["dgad/attack-skipped", "dgad/gate"]


def test_notes_name_what_is_missing(dgad: Run, tmp_path: Path) -> None:
    _, out, err = dgad("report", kept(tmp_path / "ours"), "--format", "robustbench")
    assert json.loads(out)["link"] is None
    assert "note: not known from an evaluation, and null: link" in err


def test_names_of_strangers_can_be_printed(dgad: Run, tmp_path: Path) -> None:
    folder = kept(tmp_path / "ours", hostile("\u202e</script>\n`|"))
    for form in TEXTS:
        code, out, err = dgad("report", folder, "--format", form)
        assert code == 0, err
        assert "\u202e" not in out or form == "csv"
        assert "\u202e" not in err


def test_help_names_every_form(dgad: Run) -> None:
    _, out, _ = dgad("report", "--help")
    for form in FORMS:
        assert form in out, form


def test_list_names_every_form(dgad: Run) -> None:
    _, out, _ = dgad("list", "forms")
    assert [line.split()[:2] for line in out.splitlines()] == [
        [name, f"{form.filename}:"] for name, form in FORMS.items()
    ]


def test_text_needs_no_torch(tmp_path: Path) -> None:
    folder = kept(tmp_path / "ours")
    code = (
        "import sys, cli.app\n"
        f"for form in {TEXTS!r}:\n"
        f"    assert cli.app.run(['report', {str(folder)!r}, '--format', form, '--min', 'clean=1%']) == 0\n"
        "print([name for name in ('torch', 'art', 'onnx', 'onnxruntime', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_real_evaluation_fits_every_form(dgad: Run, tmp_path: Path, victim: Victim) -> None:
    save_weights(Path("student.safetensors"), victim[0], artifact())
    code, _, err = dgad("attack", "--model", "student.safetensors", "--attack", "fgsm", "--limit", "20", "--quiet")
    assert code == 0, err
    (folder,) = tmp_path.glob("attacks/student-*")
    found = json.loads((folder / "results.json").read_text())
    for form in TEXTS:
        if form == "robustbench":
            refused(dgad("report", folder, "--format", form), "has no AutoAttack over all images")
            continue
        code, _, err = dgad("report", folder, "--format", form, "--output", form)
        assert code == 0, err
    code, out, _ = dgad("report", folder, "--format", "md", "--baseline", folder, "--max-drop", "1%")
    assert (code, out.count("| `baseline:")) == (0, 2)  # clean and fgsm
    assert Path("csv").read_bytes() == (folder / "results.csv").read_bytes()
    assert f"{100 * found['clean']['accuracy']:.1f} %" in Path("md").read_text()
    results = ModelCard(Path("model-card").read_text()).data.eval_results
    assert [each.metric_value for each in results] == [
        found["clean"]["accuracy"],
        found["attacks"][0]["robust_accuracy"],
        found["worst_case"][0]["robust_accuracy"],
    ]


def test_results_with_little_in_them_are_shown_too() -> None:
    bare = sample(clean={"accuracy": 0.0, "correct": 0, "n": 0}, attacks=[], worst_case=[], twin={}, environment={})
    for name, form in FORMS.items():
        if name == "robustbench":
            with pytest.raises(UserError):
                FORMS[name].text([bare])  # type: ignore[union-attr]
        elif isinstance(form, Text):
            assert form.text([bare])
