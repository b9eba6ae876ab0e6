"""A run folder is one run's and one process's: names, locks, file systems without locks, folders taken away."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Child, together
from runs import QUICK, Crash, interrupted, quick
from shared import Run, runner

from dgad_tk.artifacts.runs import RunFolder, new_run_folder
from dgad_tk.artifacts.weights import load_model, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.training import TrainConfig
from dgad_tk.distributed import joined, pick_device
from dgad_tk.training import claim
from dgad_tk.training.claim import claimed, locked
from dgad_tk.training.job import Progress
from dgad_tk.training.snapshot import settings_of
from dgad_tk.training.train import train

SMALL: dict[str, Any] = {"method": "standard", "epochs": 1, "limit_train": 64, "batch_size": 32}


def small(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate(SMALL | more).resolved()


def takes_names(root: Path, times: int) -> list[str]:
    while not (root.parent / "go").exists():  # all at once
        pass
    return [new_run_folder(small(), root).path.name for _ in range(times)]


def trains(folder: Path, out: Path | None, seed: int) -> Path:
    os.chdir(folder)
    return train(small(seed=seed), out=out).path


def trains_in_a_group(folder: Path) -> Path:
    os.chdir(folder)
    return train(small(device="cpu")).path


def test_processes_that_start_at_once_take_different_names(tmp_path: Path) -> None:
    children = [Child(takes_names, tmp_path / "runs", 10) for _ in range(3)]
    (tmp_path / "go").touch()
    names = [name for child in children for name in child.result()]
    assert len(set(names)) == 30
    assert set(names) == {path.name for path in (tmp_path / "runs").iterdir()}


def test_a_name_is_taken_and_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take it between the question and the answer."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    names = [new_run_folder(small(), tmp_path).path.name for _ in range(3)]
    assert names == ["digits-standard-resnet8", "digits-standard-resnet8-2", "digits-standard-resnet8-3"]


def seed_of(folder: RunFolder) -> int:
    """Of a finished run, the same in its settings, its weights and its figures."""
    assert folder.finished()
    _, record = load_model(folder.best)
    assert folder.read_config().seed == record.training["seed"]
    assert [line["event"] for line in folder.records()] == ["epoch", "end"]
    return folder.read_config().seed


def test_runs_that_start_at_once_get_a_folder_each(tmp_path: Path) -> None:
    children = [Child(trains, tmp_path, None, seed) for seed in range(3)]
    paths = [child.result() for child in children]
    assert [seed_of(RunFolder(tmp_path / path)) for path in paths] == [0, 1, 2]


def test_of_runs_that_want_one_folder_one_gets_it(tmp_path: Path) -> None:
    """The others are refused, and the settings in the folder are those of its weights."""
    children = [Child(trains, tmp_path, Path("run"), seed) for seed in range(3)]
    outcomes = [child.outcome() for child in children]
    won = [seed for seed, (how, _) in enumerate(outcomes) if how == "done"]
    assert won == [seed_of(RunFolder(tmp_path / "run"))]
    for how, said in outcomes:
        assert how == "done" or "already holds a run" in said or "another process is training" in said


def test_torchruns_processes_share_a_folder(tmp_path: Path) -> None:
    paths = {child.result() for child in together(2, trains_in_a_group, tmp_path)}
    assert len(paths) == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [path.name for path in paths]


def disagrees(folder: Path) -> None:
    os.chdir(folder)
    with joined(pick_device("cpu")) as here:
        train(small(device="cpu", seed=here.rank))


def test_torchruns_processes_must_agree_on_the_run(tmp_path: Path) -> None:
    for child in together(2, disagrees, tmp_path):
        how, said = child.outcome()
        assert (how, said.partition(" (")[0]) == (
            "refused",
            "process 1 was given other settings than process 0: seed: 1, not 0",
        )
    assert not (tmp_path / "runs").exists()


def refusing(number: int, *, named: str | None = None) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), *([named] if named else []))

    return refuse


@pytest.mark.parametrize("name", ["EWOULDBLOCK", "EAGAIN", "EACCES"])
def test_a_lock_that_is_held_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(getattr(errno, name)))
    with pytest.raises(UserError, match="another process is training in"):
        train(small(), out=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").exists()  # nothing was written before the lock was there
    monkeypatch.undo()
    assert train(small(), out=tmp_path / "run").finished()  # and what is left is no obstacle


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL", None])
def test_without_locks_a_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """None is a Python without fcntl, as on Windows."""
    if name is None:
        monkeypatch.setattr(claim, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refusing(getattr(errno, name)))
    said: list[str] = []
    assert train(small(), out=tmp_path / "run", on_message=said.append).finished()
    assert [line for line in said if "no locks" in line] == said
    assert len(said) == 1


def test_a_lock_that_fails_is_the_files_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(OSError, match="run/.lock") as caught:
        train(small(), out=tmp_path / "run")
    assert caught.value.filename == str(tmp_path / "run/.lock")


def test_an_error_while_training_is_not_the_locks(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="elsewhere") as caught, locked(RunFolder(tmp_path / "run")):
        raise OSError(errno.EIO, "elsewhere")
    assert caught.value.filename is None


def test_a_refused_process_leaves_no_trace(tmp_path: Path) -> None:
    """Neither its folder, nor its mark in another's, nor a file among somebody's own."""
    with pytest.raises(UserError, match="nothing to resume"):
        train(small(), out=tmp_path / "nowhere", resume=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a run folder"):
        train(small(), out=mine)
    folder = RunFolder(tmp_path / "run")
    with claimed(folder, small(), resume=False) as held:
        with pytest.raises(UserError, match="another process is training"):
            train(small(), out=folder.path, resume=True)
        with pytest.raises(UserError, match="already holds a run"):
            train(small(), out=folder.path)
        held.check()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "run"}
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def stop_after(epoch: int, then: Callable[[], object]) -> Callable[[Progress], None]:
    done: list[int] = []

    def called(state: Progress) -> None:
        if state.epoch == epoch and not done:
            done.append(epoch)
            then()

    return called


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "another's"])
def test_a_folder_that_is_taken_away_ends_the_run(tmp_path: Path, anew: bool) -> None:
    """Its checkpoints do not turn up in the folder that another run has made under that name."""
    folder = RunFolder(tmp_path / "run")

    def taken_away() -> None:
        shutil.rmtree(folder.path)
        if anew:
            train(small(seed=7), out=folder.path)

    said = "another process has taken over" if anew else "is gone"
    with pytest.raises(UserError, match=said):
        train(small(epochs=3), out=folder.path, on_progress=stop_after(1, taken_away))
    if anew:
        assert seed_of(folder) == 7
    else:
        assert not folder.path.exists()


def test_without_locks_the_first_of_two_runs_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has not changed the settings that the second finds and goes on with."""
    monkeypatch.setattr(claim, "fcntl", None)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="another process has taken over"):
        train(
            small(epochs=3),
            out=folder.path,
            on_progress=stop_after(1, lambda: train(small(epochs=3), out=folder.path, resume=True)),
        )
    assert folder.finished()
    assert [line.get("epoch") for line in folder.records()][:-1] == [0, 1, 2]


def test_two_that_began_at_the_same_moment_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that wrote its mark first stops, and the other puts its own settings back over those it wrote last."""
    monkeypatch.setattr(claim, "fcntl", None)
    folder = RunFolder(tmp_path / "run")
    with claimed(folder, small(seed=1), resume=False) as first, locked(folder) as second:
        small(seed=1).save(folder.config)
        with pytest.raises(UserError, match="another process has taken over"):
            first.check()
        second.check()


def test_settings_that_change_under_a_run_are_put_back(tmp_path: Path) -> None:
    """A finished run's config.yaml is what its weights were trained with, whatever was written there meanwhile."""
    folder = RunFolder(tmp_path / "run")
    train(
        small(epochs=3),
        out=folder.path,
        on_progress=stop_after(1, lambda: small(seed=5).save(folder.config)),
    )
    assert folder.read_config() == small(epochs=3)


def test_settings_that_changed_between_two_processes_are_named(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "run", quick(method="standard"))
    folder.config.write_text(folder.config.read_text().replace("weight_decay: 0.0005", "weight_decay: 0.001"))
    before = folder.last.read_bytes()
    with pytest.raises(UserError, match="was trained with: weight_decay: 0.001, not 0.0005"):
        train(folder.read_config(), out=folder.path, resume=True)
    assert folder.last.read_bytes() == before


def test_weights_of_another_run_are_named(tmp_path: Path) -> None:
    """Copied over a finished run's, or the settings over those of its weights."""
    one, two = train(small(seed=1), out=tmp_path / "one"), train(small(seed=2), out=tmp_path / "two")
    shutil.copy(one.best, two.best)
    with pytest.raises(UserError, match="are not of its config.yaml: seed: 2, not 1"):
        train(small(seed=2), out=two.path, resume=True)


def test_a_teacher_of_another_run_is_named(tmp_path: Path) -> None:
    """A finished one is looked at as well before the student goes on with it."""
    config = quick()

    def stop(state: Progress) -> None:
        if state.role == "student":
            raise Crash

    with pytest.raises(Crash):
        train(config, out=tmp_path / "run", on_progress=stop)
    folder = RunFolder(tmp_path / "run")
    assert folder.teacher.finished()
    text = folder.teacher.config.read_text()
    folder.teacher.config.write_text(text.replace("seed: 0", "seed: 3"))
    with pytest.raises(UserError, match="teacher' has another config: seed: 0, not 3"):
        train(config, out=folder.path, resume=True)
    folder.teacher.config.write_text(text)
    assert train(config, out=folder.path, resume=True).finished()
    assert read_weights(folder.best)[1].teacher.endswith(sha256_file(folder.teacher.best))


def test_a_crash_before_there_were_settings(tmp_path: Path) -> None:
    """The folder and its lock are there and nothing else: the same command begins anew, and nothing is resumed."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".lock").write_text("process 1")
    (folder.path / ".config-x.yaml").write_text("datas")
    with pytest.raises(UserError, match="nothing to resume"):
        train(small(), out=folder.path, resume=True)
    assert train(small(), out=folder.path).finished()


def test_a_checkpoint_knows_its_settings_and_not_its_places() -> None:
    here = settings_of(small())
    assert here["seed"] == 0
    assert not {"data_dir", "teacher", "device", "checkpoint_minutes", "paper"} & here.keys()
    assert QUICK["epochs"] == settings_of(quick())["epochs"]


def test_the_command_without_out_takes_the_next_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run: Run = runner(capsys)
    options = ["--method", "standard", "--epochs", "1", "--limit-train", "64", "--quiet", "--json"]
    for name in ("digits-standard-resnet8", "digits-standard-resnet8-2"):
        code, out, err = run("train", *options)
        assert code == 0, err
        assert f'"runs/{name}"' in out
