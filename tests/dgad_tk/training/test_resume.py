"""Runs that are killed, interrupted or damaged, and resumed, end with the bits of a run that nothing happened to."""

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Child
from runs import QUICK, Crash, assert_same_run, interrupted, quick
from shared import randomise_batch_norm
from torch import nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state, save_state
from dgad_tk.common import UserError
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.models import MODELS
from dgad_tk.training import fit as fitting
from dgad_tk.training import snapshot
from dgad_tk.training import train as training
from dgad_tk.training.job import Progress
from dgad_tk.training.train import train
from exporters.onnx_student.start import start_from_graph


class Small(nn.Module):
    """BatchNorm and a few layers: an epoch takes little longer than what stands around it."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, stride in ((in_channels, 1), (8, 2)):
            layers += [nn.Conv2d(before, 8, 3, stride, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def run(values: dict[str, Any], out: Path, resume: bool) -> None:
    MODELS["small"] = Small
    config = TrainConfig.model_validate(values)
    graph = config.init is not None and config.init.suffix == ".onnx"
    train(config, out=out, resume=resume, start=start_from_graph(config.init) if graph else None)


def position(folder: RunFolder) -> tuple[str, int, int]:
    """Whose checkpoint is the newest, and the epoch and step that it holds."""
    for role, part in (("student", folder), ("teacher", folder.teacher)):
        if part.last.is_file():
            state = load_state(part.last)["state"]
            return role, state["epoch"], state["position"]["step"]
    return "none", 0, 0


def run_until(values: dict[str, Any], out: Path, resume: bool, moment: int | None) -> int:
    """As `run`, and how many of Python's calls and returns it took; with a `moment` it is killed at that one.

    They are the clock, since they are as many on a machine that is slow or busy.
    """
    count = 0

    def tick(*_: object) -> None:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(tick)
    try:
        run(values, out, resume)
    finally:
        sys.setprofile(None)
    return count


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "graph and ema": {
        **{"init": "first.onnx", "averaging": "ema", "awp_gamma": 0.005, "method": "dgad+saad", "lr": 0.02},
        "method_options": {"teacher_in_attack": "linear", "saad.beta": 0.2},
    },
    "weights and swa": {
        **{"init": "first.pt", "averaging": "swa", "swa_start": 1, "method": "rslad+classwise+saad"},
        "method_options": {"classwise.rate": 0.4},
    },
    "parts": {
        **{"accumulate": 3, "optimizer": "adamw", "lr": 0.01, "decay_weights_only": True, "freeze_bn": True},
        **{"method": "adaad+igdm", "method_options": {"teacher_in_attack": "none"}},
        "augment": ["random-resized-crop:0.5", "flip", "colour-jitter"],
    },
}


def first_weights(path: Path) -> str:
    """A file to start from: weights, or a graph with its BatchNorms."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = randomise_batch_norm(Small(1, 10)).eval()
    if path.suffix == ".pt":
        torch.save(net.state_dict(), path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter is deprecated, and what many files come from
            kept: dict[str, Any] = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
            axes = {"images": {0: "batch"}}
            images = (torch.zeros(2, 1, 8, 8),)
            torch.onnx.export(net, images, path, dynamo=False, input_names=["images"], dynamic_axes=axes, **kept)
    return str(path)


@pytest.mark.parametrize("more", OPTIONS.values(), ids=OPTIONS)
def test_twenty_kills_leave_no_trace(tmp_path: Path, more: dict[str, Any]) -> None:
    """SIGKILL at random moments, of starting, of the teacher's training, of the student's, of selecting, of saving.

    A run that gets to its end between two kills is compared, and another one is begun.
    """
    values = (
        QUICK | {"student": "small", "teacher_model": "small", "limit_train": 160, "checkpoint_minutes": 1e-9} | more
    )
    whole = RunFolder(tmp_path / "whole")
    if "init" in more:
        values["init"] = first_weights(tmp_path / more["init"])
    if more.get("init") == "first.onnx":
        values.pop("student")  # the graph is the student
    longest = 0.6 * Child(run_until, values, whole.path, False, None).result()

    random, kills, at, folder = np.random.default_rng(len(more)), 0, set(), RunFolder(tmp_path / "0")
    for number in range(200):
        moment = int(random.uniform(1, longest)) if kills < 20 else None
        how, what = Child(run_until, values, folder.path, folder.exists(), moment).outcome()
        if how == "killed":
            kills += 1
            at.add(position(folder))
            if folder.path.exists() and not folder.exists():
                shutil.rmtree(folder.path)  # killed before there was a run: nothing to resume
            continue
        assert how == "done", what
        assert_same_run(whole, folder)
        if kills == 20:
            break
        folder = RunFolder(tmp_path / str(number + 1))
    assert kills == 20
    assert {role for role, _, _ in at} >= {"teacher", "student"}
    assert sum(step > 0 for _, _, step in at) >= 3  # within an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run to which nothing happened."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    Child(run, QUICK | {"averaging": "ema"}, folder.path, False).result()
    return folder


@pytest.fixture
def signals() -> Iterator[None]:
    """A signal that the run does not answer fails the test, and does not end the tests."""

    def unanswered(number: int, frame: object) -> None:
        raise AssertionError(f"signal {number} reached nobody")

    before = {number: signal.signal(number, unanswered) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is unanswered  # the run put it back
        signal.signal(number, handler)


def at_step(epoch: int, step: int, role: str = "student", *, times: int = 1, number: int = signal.SIGTERM) -> Any:
    def signalled(state: Progress) -> None:
        if (state.role, state.epoch, state.step) == (role, epoch, step) and state.metrics is None:
            for _ in range(times):
                signal.raise_signal(number)

    return signalled


@pytest.mark.parametrize(
    ("number", "role", "epoch", "step"),
    [
        (signal.SIGTERM, "student", 1, 2),
        (signal.SIGINT, "student", 0, 1),
        (signal.SIGTERM, "student", 2, 3),  # the last step of all
        (signal.SIGINT, "teacher", 1, 2),
    ],
)
def test_a_signal_saves_the_step_and_ends_the_run(
    tmp_path: Path, whole: RunFolder, signals: None, number: int, role: str, epoch: int, step: int
) -> None:
    cut = RunFolder(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(quick(averaging="ema"), out=cut.path, on_progress=at_step(epoch, step, role, number=number))
    assert position(cut) == (role, epoch, step)
    assert not cut.finished()
    train(quick(averaging="ema"), out=cut.path, resume=True)
    assert_same_run(whole, cut)


def test_a_signal_from_outside(tmp_path: Path) -> None:
    values = QUICK | {"method": "trades", "epochs": 500}
    child = Child(run, values, tmp_path / "run", False)
    folder = RunFolder(tmp_path / "run")
    while not folder.records():
        assert not child.ends_within(0.01)
    child.kill(signal.SIGTERM)
    assert child.outcome() == ("interrupted", None)
    _, epoch, _ = position(folder)
    assert [record["epoch"] for record in folder.records()] == list(range(epoch))


def test_a_second_signal_does_not_wait(tmp_path: Path, signals: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(quick(), out=tmp_path / "run", on_progress=at_step(1, 2, times=2))
    assert position(RunFolder(tmp_path / "run")) == ("student", 1, 0)


def signal_while_selecting(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th selection, from 0, is interrupted after its first batch."""
    real, calls = fitting.accuracies, iter(range(99))

    def accuracies(*arguments: Any, between: Callable[[], None], **more: Any) -> tuple[float, float]:
        this = next(calls)

        def after_batch() -> None:
            if this == at:
                signal.raise_signal(signal.SIGTERM)
            between()

        return real(*arguments, between=after_batch, **more)

    monkeypatch.setattr(fitting, "accuracies", accuracies)


@pytest.mark.parametrize("averaging", ["none", "ema", "swa"])
def test_a_signal_during_the_selection(
    tmp_path: Path, signals: None, monkeypatch: pytest.MonkeyPatch, averaging: str
) -> None:
    """The weights of the epoch are in the average already, and are not taken into it once more."""
    config = quick(method="trades", epochs=4, averaging=averaging, swa_start=0.5)
    whole = train(config, out=tmp_path / "whole")
    cut = RunFolder(tmp_path / "cut")
    with monkeypatch.context() as patch:
        signal_while_selecting(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config, out=cut.path)
    assert position(cut) == ("student", 2, 3)
    saved = load_state(cut.last)["averaged"]
    if averaging == "swa":
        assert int(saved["n_averaged"]) == 1
        assert int(load_state(whole.last)["averaged"]["n_averaged"]) == 2
    train(config, out=cut.path, resume=True)
    assert_same_run(whole, cut)


@pytest.mark.parametrize(("what", "after"), [("save_state", 1), ("append", 1)])
def test_a_crash_between_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, after: int) -> None:
    """best.safetensors without its line, and the line without its checkpoint."""
    whole = train(quick(method="standard"), out=tmp_path / "whole")
    cut = RunFolder(tmp_path / "cut")
    owner: Any = RunFolder if what == "append" else snapshot
    real, calls = getattr(owner, what), iter(range(99))

    def crashing(*arguments: Any) -> None:
        if next(calls) == after:
            raise Crash
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, crashing)
        with pytest.raises(Crash):
            train(quick(method="standard"), out=cut.path)
    train(quick(method="standard"), out=cut.path, resume=True)
    assert_same_run(whole, cut)


def test_metrics_of_epochs_that_are_run_again_are_cut(tmp_path: Path) -> None:
    config = quick(method="standard")
    whole = train(config, out=tmp_path / "whole")
    cut = interrupted(tmp_path / "cut", config)
    for epoch in (1, 2):
        cut.append({"event": "epoch", "epoch": epoch, "loss": -1.0})
    for name in (".last-a.ckpt", ".best-b.safetensors", ".metrics-c.jsonl", ".config-d.yaml"):
        (cut.path / name).write_text("half")
    train(config, out=cut.path, resume=True)
    assert_same_run(whole, cut)


def test_a_teacher_whose_folder_was_only_just_made(tmp_path: Path, whole: RunFolder) -> None:
    """Killed while the teacher's config was written, the run goes on all the same."""
    cut = RunFolder(tmp_path / "cut")
    cut.path.mkdir()
    quick(averaging="ema").resolved().save(cut.config)
    cut.teacher.path.mkdir()
    (cut.teacher.path / ".config-x.yaml").write_text("datas")
    train(quick(averaging="ema"), out=cut.path, resume=True)
    assert_same_run(whole, cut)


def test_how_often_to_save_may_change(tmp_path: Path) -> None:
    whole = train(quick(method="standard"), out=tmp_path / "whole")
    cut = interrupted(tmp_path / "cut", quick(method="standard"))
    train(quick(method="standard", checkpoint_minutes=1e-9), out=cut.path, resume=True)
    assert_same_run(whole, cut)
    never = train(quick(method="standard", checkpoint_minutes=None), out=tmp_path / "never")
    assert_same_run(whole, never)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.05}, "another config: .*; lr: 0.05, not 0.2"),
        ({"epochs": 5}, "another config: epochs: 5, not 3"),
        ({"threat": {"eps": 0.15, "step_size": 0.05, "steps": 3}}, "another config: threat: .*steps"),
        ({"averaging": "swa"}, "another config: averaging: swa, not none"),
    ],
)
def test_another_config_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = interrupted(tmp_path / "run", quick(method="standard", lr=0.2))
    before = folder.last.read_bytes()
    with pytest.raises(UserError, match=message):
        train(quick(**{"method": "standard", "lr": 0.2} | change), out=folder.path, resume=True)
    assert folder.last.read_bytes() == before


def test_other_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(tmp_path / "run", quick(method="standard"))

    def another(*arguments: Any, **more: Any) -> Dataset:
        return replace(load_dataset(*arguments, **more), sha256="f" * 64)

    monkeypatch.setattr(training, "load_dataset", another)
    with pytest.raises(UserError, match="was begun with another dataset: .*, not ffff"):
        train(quick(method="standard"), out=folder.path, resume=True)


def test_another_number_of_processes_is_named(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "run", quick(method="standard"))
    state = load_state(folder.last)
    state["origin"]["number of processes"] = "4"
    save_state(folder.last, state)
    with pytest.raises(UserError, match="was begun with another number of processes: 4, not 1"):
        train(quick(method="standard"), out=folder.path, resume=True)


def test_a_run_whose_best_weights_are_gone(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "run", quick(method="standard"))
    folder.best.unlink()
    with pytest.raises(UserError, match="best.safetensors' is gone, and the run needs it"):
        train(quick(method="standard"), out=folder.path, resume=True)


def test_time_goes_on_counting(tmp_path: Path) -> None:
    """Seconds of the processes that a run was resumed from are its own."""
    folder = interrupted(tmp_path / "run", quick(method="standard"))
    before = load_state(folder.last)["state"]["seconds"]
    train(quick(method="standard"), out=folder.path, resume=True)
    assert folder.records()[-1]["seconds"] > before > 0
