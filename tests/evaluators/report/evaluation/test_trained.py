"""Which training run belongs to results: by SHA-256, near at hand, and whatever strangers wrote as a path."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sample_results import sample

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.common import sha256_file
from evaluators.report.evaluation import trained as module
from evaluators.report.evaluation.trained import run_of, trained
from evaluators.results import Results


def make_run(path: Path, content: bytes = b"weights") -> RunFolder:
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.config.write_text("epochs: 1\n")
    folder.metrics.write_text("")
    folder.best.write_bytes(content)
    return folder


def about(folder: RunFolder, path: str = "student.onnx", **metadata: Any) -> Results:
    record = {"source_sha256": sha256_file(folder.best)} | metadata
    return sample(model={"path": path, "sha256": "0" * 64, "format": "onnx", "metadata": record})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    module._sha256_of.cache_clear()


def found(results: Results) -> Path | None:
    run = run_of(results)
    return run and run.path


def test_the_run_is_known_by_its_weights() -> None:
    make_run(Path("runs/other"), b"other")
    run = make_run(Path("runs/this"))
    assert found(about(run)) == run.path
    model = {"path": "x", "sha256": sha256_file(run.best), "format": "safetensors", "metadata": None}
    assert found(sample(model=model)) == run.path
    assert found(sample(model=model | {"sha256": "1" * 64})) is None


def test_runs_are_looked_for_only_where_a_record_speaks_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: Path) -> str:
        raise AssertionError("it was read")

    run = make_run(Path("runs/this"))
    monkeypatch.setattr(module, "sha256_file", never)
    model = {"path": "x.onnx", "sha256": "1" * 64, "format": "onnx", "metadata": {"training": {}}}
    assert found(sample(model=model)) is None
    with pytest.raises(AssertionError, match="it was read"):
        found(about(run))


def test_a_strangers_path_is_looked_at_inside_the_current_folder_only(tmp_path: Path) -> None:
    outside, inside = make_run(tmp_path / "outside"), make_run(Path("mine"))
    assert found(about(outside, str(outside.best))) is None
    assert found(about(outside, "../outside/best.safetensors")) is None
    assert found(about(inside, "mine/best.safetensors")) == Path("mine")
    Path("link").symlink_to(outside.path, target_is_directory=True)
    assert found(about(outside, "link/best.safetensors")) is None


@pytest.mark.parametrize("path", ["x" * 5000 + "/m", "a\0b/m", "\ud800/m", "loop/m", "", "/proc/self/mem", "~/m"])
def test_paths_that_no_file_has(path: str) -> None:
    Path("loop").symlink_to("loop")
    run = make_run(Path("runs/this"))
    assert found(about(run, path)) == run.path


def test_runs_that_cannot_be_read_are_not_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that vanishes, one that nobody may look into."""
    run, odd = make_run(Path("runs/this")), make_run(Path("runs/odd"), b"odd")
    results = about(run)
    for name in ("exists", "written"):
        own = getattr(RunFolder, name)

        def failing(self: RunFolder, own: Any = own) -> Any:
            if self.path.name == odd.path.name:
                raise PermissionError(13, "Permission denied", str(self.path))
            return own(self)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, name, failing)
            assert found(results) == run.path
    own_sha256 = sha256_file

    def vanishing(path: Path) -> str:
        if path.parent.name == odd.path.name:
            raise FileNotFoundError(2, "No such file", str(path))
        return own_sha256(path)

    os.utime(odd.metrics, (2**32, 2**32))  # so that it is looked at first
    monkeypatch.setattr(module, "sha256_file", vanishing)
    assert found(results) == run.path


def test_each_file_is_read_once_while_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run, results = make_run(Path("runs/this")), about(make_run(Path("runs/that"), b"that"))
    read: list[Path] = []
    monkeypatch.setattr(module, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    assert [found(results) for _ in range(3)] == [Path("runs/that")] * 3
    assert len(read) == len(set(read))
    before = len(read)
    run.best.write_bytes(b"that")
    shutil.rmtree("runs/that")
    assert found(results) == run.path
    assert len(read) == before + 1


def test_a_run_that_vanishes_leaves_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(folder: RunFolder) -> None:
        raise FileNotFoundError(2, "No such file", str(folder.config))

    run = make_run(Path("runs/this"))
    monkeypatch.setattr(module, "read_run", gone)
    told = trained(about(run, method="dgad"))
    assert ("method", "dgad") in told.facts
    assert "No such file" in dict(told.facts)["its curves"]
    assert told.curves == []
