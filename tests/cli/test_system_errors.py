"""What the operating system refuses: a missing service does not end the work, a real error names its path."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared import Run, runner

from dgad_tk.common import UserError, written_aside
from dgad_tk.data import load_dataset
from dgad_tk.distributed import by_leader


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


def refusing(number: int, *names: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), *names)

    return refuse


NUMBERS = sorted(set(errno.errorcode) - {errno.EINTR, errno.EPIPE})
"""Of an interrupted call and of a closed pipe Python and Typer take care themselves."""


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EACCES, errno.EROFS, errno.EIO])
def test_modes_are_a_precaution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "chmod", refusing(number))
    with written_aside(tmp_path / "f.txt") as aside:
        aside.write_text("new")
    assert (tmp_path / "f.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_flushing_to_disk_is_a_precaution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    with written_aside(tmp_path / "f.txt") as aside:
        aside.write_text("new")
    assert (tmp_path / "f.txt").read_text() == "new"
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    assert len(load_dataset("digits").train) > 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
@pytest.mark.parametrize("name", ["fsync", "replace", "open"])
def test_a_write_that_fails_names_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """Not the temporary file, and not nothing; and the old file is whole."""
    path = tmp_path / "f.txt"
    path.write_text("old")
    if name == "open":
        monkeypatch.setattr(Path, "touch", lambda aside, **_: refusing(number, str(aside))())
    else:
        monkeypatch.setattr(os, name, refusing(number))
    with pytest.raises(OSError, match="f.txt") as caught, written_aside(path) as aside:
        aside.write_text("new")
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_inside_that_names_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, written_aside(tmp_path / "f.txt"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError, match="f") as caught, written_aside(tmp_path / "f") as aside:
        aside.write_text("new")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "f"), None)


def raising(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("dgad_tk.training.train.train", raise_it)


@pytest.mark.parametrize("number", NUMBERS)
def test_with_a_path_it_is_never_a_bug(dgad: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    raising(OSError(number, os.strerror(number), "some/file"), monkeypatch)
    code, out, err = dgad("train", "--quiet")
    assert (code, out) == (2, "")
    error, hint = err.splitlines()
    assert error == f"error: cannot use 'some/file': {os.strerror(number)}"
    assert hint.startswith("hint: ")


def test_of_a_renaming_the_new_name_counts(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(OSError(errno.EXDEV, "x", ".tmp-1", None, "runs/a"), monkeypatch)
    assert "cannot use 'runs/a': " in dgad("train", "--quiet")[2]


def test_a_path_may_be_bytes(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(OSError(errno.EIO, "x", b"a\xffb"), monkeypatch)
    code, _, err = dgad("train", "--quiet")
    assert code == 2
    assert "cannot use 'a\\xffb'" in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_without_a_path_the_machines_state_is_no_bug_either(
    dgad: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    raising(OSError(number, os.strerror(number)), monkeypatch)
    code, _, err = dgad("train", "--quiet")
    assert code == 2
    assert f"error: the system refused: {os.strerror(number)}" in err


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "x"), OSError("odd"), OSError(errno.EBADF, "x", 7)])
def test_without_a_path_a_programs_mistake_is_one(dgad: Run, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    raising(error, monkeypatch)
    code, _, err = dgad("train", "--quiet")
    assert code == 3
    assert "Traceback" in err


def test_a_system_error_of_the_leader_is_everybodys() -> None:
    with pytest.raises(OSError, match="some/file"):
        by_leader(refusing(errno.ENOSPC, "some/file"))
    with pytest.raises(UserError):
        by_leader(lambda: (_ for _ in ()).throw(UserError("no")))
