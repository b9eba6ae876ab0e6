"""report.html of `dgad train`: written after its epochs, whatever happens to it."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from shared import BRIEF, Run

from cli.printing import run_page
from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import read_weights
from exporters.export import export
from exporters.formats import load


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Epochs of teacher and student that each page was written after; pages are never too young."""
    from evaluators.report import training

    found, own = [], training.write_run_page

    def write(folder: RunFolder) -> Path:
        found.append(tuple(sum(line["event"] == "epoch" for line in f.records()) for f in (folder.teacher, folder)))
        return own(folder)

    monkeypatch.setattr(training, "write_run_page", write)
    monkeypatch.setattr(run_page, "SECONDS", 0.0)
    monkeypatch.setattr(run_page, "SHARE", 1e9)
    return found


def test_a_page_after_each_epoch_and_at_the_end(dgad: Run, written: list[tuple[int, int]]) -> None:
    code, out, err = dgad("train", *BRIEF, "--epochs", "2", "--quiet", "--out", "a run")
    assert code == 0, err
    assert written == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 2)]
    assert out.splitlines()[-1] == f"report: {Path('a run/report.html')}"
    page = Path("a run/report.html").read_text()
    best = read_weights(Path("a run/best.safetensors"))[1].training
    share = f"{100 * best['robust_accuracy']:.1f}\N{NO-BREAK SPACE}%"
    assert f"{share} right under attack in the best epoch ({best['best_epoch']}), on " in page
    assert not list(Path("a run").glob(".report*"))
    assert not Path("a run/teacher/report.html").exists()
    Path("a run/report.html").unlink()
    code, out, err = dgad("train", "--out", "a run", "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["report"] == str(Path("a run/report.html"))
    assert Path("a run/report.html").read_text() == page


def test_short_epochs_do_not_write_it_each_time(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluators.report import training

    pages: list[RunFolder] = []
    monkeypatch.setattr(training, "write_run_page", lambda folder: pages.append(folder) or folder.report)
    monkeypatch.setattr(run_page, "SECONDS", 1e6)
    code, _, err = dgad("train", *BRIEF, "--epochs", "3", "--method", "standard", "--quiet")
    assert code == 0, err
    assert len(pages) == 2  # after the first epoch, and at the end


def test_an_interrupted_run_has_its_page_too(
    dgad: Run, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, int]]
) -> None:
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        if state.role == "student" and state.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        code, _, err = dgad("train", *BRIEF, "--epochs", "2", "--out", "r")
    assert code == 130, err
    assert written[-1] == (2, 1)
    assert "This run has not ended: 1 of 2 epochs done" in Path("r/report.html").read_text()
    code, _, err = dgad("train", "--out", "r", "--resume", "--quiet")
    assert code == 0, err
    assert "This run has not ended" not in Path("r/report.html").read_text()


def test_a_page_that_cannot_be_written_is_a_warning(
    dgad: Run, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, int]]
) -> None:
    """On a full disk the training goes on, and it is said once."""
    from evaluators.report import training

    def refuse(folder: RunFolder) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.report))

    monkeypatch.setattr(training, "write_run_page", refuse)
    code, out, err = dgad("train", *BRIEF, "--epochs", "2", "--quiet", "--out", "r")
    assert code == 0, err
    (line,) = [line for line in err.splitlines() if "report.html" in line]
    assert line.startswith("warning: report.html was not written, training goes on: ")
    assert "No space left on device" in line
    assert "report:" not in out
    assert RunFolder(Path("r")).finished()
    code, out, err = dgad("train", "--out", "r", "--resume", "--json")
    assert (code, json.loads(out)["report"]) == (0, None)


def test_a_bug_in_the_page_shows_once_the_training_is_saved(
    dgad: Run, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, int]]
) -> None:
    from evaluators.report import training

    calls: list[RunFolder] = []

    def broken(folder: RunFolder) -> Path:
        calls.append(folder)
        raise ZeroDivisionError("in the page")

    monkeypatch.setattr(training, "write_run_page", broken)
    code, out, err = dgad("train", *BRIEF, "--epochs", "2", "--quiet", "--out", "r")
    assert code == 3
    assert "Traceback" in err
    assert "ZeroDivisionError: in the page" in err
    assert len(calls) == 1
    assert err.index("warning: report.html was not written") < err.index("Traceback")
    assert out.startswith("r: resnet8 by dgad, best epoch ")
    assert RunFolder(Path("r")).finished()


def test_a_loss_that_is_no_number_is_on_the_page(dgad: Run, written: list[tuple[int, int]]) -> None:
    code, _, err = dgad("train", *BRIEF, "--method", "standard", "--set", "lr=1e30", "--epochs", "3", "--out", "r")
    assert code == 2
    assert "the loss became" in err
    assert "The run stopped in epoch 2: the loss was NaN or infinite" in Path("r/report.html").read_text()


def test_what_the_paper_prints_travels_with_the_exported_file(dgad: Run) -> None:
    paper = "paper: {table: 4, row: 'Größe <b>', figures: {aa: 50.59}, source: the paper}"
    Path("mine.yaml").write_text(paper, encoding="utf-8")
    code, _, err = dgad("train", *BRIEF, "--config", "mine.yaml", "--method", "standard", "--quiet", "--out", "r")
    assert code == 0, err
    for format, name in (("onnx", "s.onnx"), ("torchscript", "s.pt")):
        export(Path("r/best.safetensors"), format, Path(name))
        record = load(Path(name), trust=True).artifact
        assert record is not None
        assert record.training["paper"] == {
            "table": 4, "row": "Größe <b>", "figures": {"aa": 50.59}, "source": "the paper"
        }  # fmt: skip
