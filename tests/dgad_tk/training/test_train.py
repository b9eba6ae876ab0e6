"""The training loop: what it writes, that it resumes to the same bits, that it refuses what does not fit."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dgad_tk.artifacts.runs import RunFolder, new_run_folder, newest_run, weights_of
from dgad_tk.artifacts.weights import load_model, load_state
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.threat import ThreatModel
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import load_dataset
from dgad_tk.data.batches import batch_positions
from dgad_tk.draws import Draws
from dgad_tk.training.claim import locked
from dgad_tk.training.job import Progress
from dgad_tk.training.learner import learning_rate
from dgad_tk.training.selection import accuracies
from dgad_tk.training.train import train

QUICK: dict[str, Any] = {
    "epochs": 2,
    "limit_train": 96,
    "batch_size": 32,
    "teacher_model": "resnet8",
    "threat": {"eps": 0.15, "step_size": 0.05, "steps": 2},
}


def quick(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate(QUICK | more)


def test_a_run_leaves_what_the_design_says(tmp_path: Path) -> None:
    seen: list[Progress] = []
    folder = train(quick(), out=tmp_path / "run", on_progress=seen.append)
    for part in (folder, folder.teacher):
        assert part.finished()
        assert {path.name for path in part.path.iterdir()} >= {
            "config.yaml",
            "metrics.jsonl",
            "last.ckpt",
            "best.safetensors",
        }
    records = folder.records()
    assert [record["event"] for record in records] == ["epoch", "epoch", "end"]
    assert {"loss", "accuracy", "l_st", "l_at", "pcr", "val_clean", "val_robust", "lr"} <= set(records[0])
    assert folder.read_config().epochs == 2
    assert load_state(folder.last)["best_sha256"] == sha256_file(folder.best)

    model, artifact = load_model(folder.best)
    assert artifact.teacher == f"resnet8 {sha256_file(folder.teacher.best)}"
    assert artifact.threat["eps"] == 0.15
    assert (artifact.training["selected_on"], artifact.training["selection_images"]) == ("val", 144)
    # The recorded figures are those of the weights beside them.
    threat, draws = ThreatModel.model_validate(artifact.threat), Draws(0)
    clean, robust = accuracies(model, load_dataset("digits").val, threat, draws, device=torch.device("cpu"))
    assert (clean, robust) == (artifact.training["clean_accuracy"], artifact.training["robust_accuracy"])
    assert {state.role for state in seen} == {"teacher", "student"}
    assert [state.step for state in seen if state.role == "student" and state.metrics is None] == [1, 2, 3] * 2


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_state(folder.last)["student"]
    return found


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = quick(method="pgd-at", epochs=3)
    whole = train(config, out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_in_second_epoch(state: Progress) -> None:
        if state.epoch == 1 and state.step == 2:
            raise Stop

    with pytest.raises(Stop):
        train(config, out=tmp_path / "cut", on_progress=stop_in_second_epoch)
    cut = RunFolder(tmp_path / "cut")
    assert not cut.finished()
    # A process killed between the line and the checkpoint leaves a line of an epoch that will be run again.
    cut.append({"event": "epoch", "epoch": 1, "loss": -1})
    with cut.metrics.open("a") as file:
        file.write('{"event": "epo')
    train(config, out=tmp_path / "cut", resume=True)

    assert all(torch.equal(value, weights(cut)[name]) for name, value in weights(whole).items())
    pairs = zip(load_file(whole.best).items(), load_file(cut.best).items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)

    def figures(folder: RunFolder) -> list[dict[str, Any]]:
        return [{k: v for k, v in each.items() if "second" not in k} for each in folder.records()]

    assert figures(whole) == figures(cut)


WAITING = """
import itertools, sys, time
from cli import app
from dgad_tk.training.learner import Learner
real, steps = Learner.learn, itertools.count(1)

def learn(*arguments):
    real(*arguments)
    if next(steps) == int(sys.argv[1]):
        print("here", file=sys.__stdout__, flush=True)
        time.sleep(600)

Learner.learn = learn
sys.exit(app.run(sys.argv[2:]))
"""
"""`dgad`, that says when it has made so many steps and makes no more."""


def test_sigkill_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """A real process, killed where it cannot clean up, resumed by the command line."""
    out = tmp_path / "run"
    options = ["--epochs", "4", "--method", "pgd-at", "--limit-train", "96", "--set", "batch_size=32"]
    options += ["--set", "threat.eps=0.15", "--set", "threat.step_size=0.05", "--set", "threat.steps=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    in_third_epoch = str(3 + 3 + 2)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, in_third_epoch, "train", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert said == "here\n", err
    assert process.returncode == -signal.SIGKILL
    assert not RunFolder(out).finished()
    assert [record["epoch"] for record in RunFolder(out).records()] == [0, 1]

    resumed = subprocess.run(
        [sys.executable, "-m", "cli", "train", "--out", str(out), "--resume"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert RunFolder(out).finished()
    assert [record["epoch"] for record in RunFolder(out).records()[:-1]] == [0, 1, 2, 3]


def test_resuming_with_another_config_names_the_difference(tmp_path: Path) -> None:
    config = quick(method="standard", epochs=1)
    train(config, out=tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run .add --resume"):
        train(config, out=tmp_path / "run")
    with pytest.raises(UserError, match="has another config: seed: 1, not 0"):
        train(config.model_copy(update={"seed": 1}), out=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        train(config, out=tmp_path / "other", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a run folder"):
        train(config, out=tmp_path / "mine")


def test_a_given_teacher(tmp_path: Path) -> None:
    teacher = train(quick(method="standard", epochs=1), out=tmp_path / "teacher")
    folder = train(quick(teacher=str(teacher.path), epochs=1), out=tmp_path / "student")
    assert not folder.teacher.path.exists()
    assert load_model(folder.best)[1].teacher.endswith(sha256_file(teacher.best))


def test_unfit_teachers(tmp_path: Path, weights: Path) -> None:
    from shared import artifact

    from dgad_tk.artifacts.weights import save_weights
    from dgad_tk.models import build_model

    save_weights(
        tmp_path / "c3.safetensors", build_model("resnet8", in_channels=3, classes=10), artifact(shape=(3, 8, 8))
    )
    five = artifact(classes=list("abcde"))
    save_weights(tmp_path / "k5.safetensors", build_model("resnet8", in_channels=1, classes=5), five)
    (tmp_path / "t.pth").write_bytes(b"?")
    for name, message in [
        ("c3.safetensors", "takes 3 channels, 'digits' has 1"),
        ("k5.safetensors", "knows 5 classes"),
        ("t.pth", "cannot read"),
        ("missing", "no such file or run folder"),
    ]:
        with pytest.raises(UserError, match=message):
            train(quick(teacher=str(tmp_path / name)), out=tmp_path / f"run-{name}")


def test_resuming_with_another_teacher_is_refused(tmp_path: Path) -> None:
    first = train(quick(method="standard", epochs=1), out=tmp_path / "a")
    other = train(quick(method="standard", epochs=1, seed=1), out=tmp_path / "b")
    given = tmp_path / "teacher.safetensors"
    given.write_bytes(first.best.read_bytes())
    config = quick(teacher=str(given))

    def stop(state: Progress) -> None:
        if state.epoch == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, out=tmp_path / "run", on_progress=stop)
    given.write_bytes(other.best.read_bytes())
    with pytest.raises(UserError, match="was begun with another teacher"):
        train(config, out=tmp_path / "run", resume=True)
    given.write_bytes(first.best.read_bytes())
    assert train(config, out=tmp_path / "run", resume=True).finished()


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    config = quick(method="standard", epochs=1)
    folder = train(config, out=tmp_path / "run")
    with locked(folder), pytest.raises(UserError, match="another process is training in"):
        train(config, out=folder.path, resume=True)
    assert train(config, out=folder.path, resume=True).finished()


def test_damaged_run_folders(tmp_path: Path) -> None:
    def broken(damage: Callable[[RunFolder], object]) -> None:
        folder = RunFolder(tmp_path / "run")
        shutil.rmtree(folder.path, ignore_errors=True)

        def stop(state: Progress) -> None:
            if state.epoch == 1:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            train(quick(method="standard"), out=folder.path, on_progress=stop)
        damage(folder)
        train(quick(method="standard"), out=folder.path, resume=True)

    for content in (b"3\n", b"null\n", b'{"a": 1}\n', b"\xff\xfe\n"):
        broken(lambda folder, content=content: folder.metrics.write_bytes(folder.metrics.read_bytes() + content))  # type: ignore[misc]
    for message, damage in [
        ("read safely", lambda folder: folder.last.write_bytes(folder.last.read_bytes()[:2000])),
        ("of this version", lambda folder: torch.save({"format": 1}, folder.last)),
        ("is gone", lambda folder: folder.best.unlink()),
        ("unknown key 'lrr'", lambda folder: folder.config.write_text("lrr: 3\n")),
    ]:
        with pytest.raises(UserError, match=message):
            broken(damage)


def test_names_are_checked_before_hours_of_work(tmp_path: Path) -> None:
    for change, message in [
        ({"student": "resnet9"}, "unknown model 'resnet9'"),
        ({"teacher_model": "resnet21"}, "unknown model"),
        ({"teacher_method": "trade"}, "unknown method 'trade'"),
        ({"method": "dgda"}, "unknown method 'dgda'"),
        ({"dataset": "digit"}, "unknown dataset 'digit'"),
        ({"method_options": {"alpha": 1}}, "no option 'alpha'"),
    ]:
        with pytest.raises(UserError, match=message):
            train(quick(**change), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_stops_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss became .*lower the learning rate"):
        train(quick(method="standard", lr=1e30, epochs=5), out=tmp_path / "run")


def test_schedules() -> None:
    piecewise = TrainConfig(epochs=200)
    rates = [learning_rate(piecewise, at) for at in (0, 99.9, 100, 149.9, 150, 199.9)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert [
        learning_rate(TrainConfig(epochs=110, milestones=(100, 105)), at) for at in (99, 100, 105)
    ] == pytest.approx([0.1, 0.01, 0.001])
    cosine = TrainConfig(schedule="cosine", lr=0.2)
    assert [learning_rate(cosine, at) for at in (0, 100, 200)] == pytest.approx([0.2, 0.1, 0.0])
    warm = TrainConfig(schedule="cosine", lr=0.2, epochs=110, warmup_epochs=10)
    assert [learning_rate(warm, at) for at in (0, 5, 10, 60, 110)] == pytest.approx([0.0, 0.1, 0.2, 0.1, 0.0])
    cyclic = TrainConfig(schedule="cyclic", lr=0.2, epochs=50)
    assert [learning_rate(cyclic, at) for at in (0, 10, 20, 35, 50)] == pytest.approx([0.0, 0.1, 0.2, 0.1, 0.0])
    assert learning_rate(TrainConfig(schedule="constant", lr=0.3), 7.5) == 0.3


@pytest.mark.parametrize(("n", "sizes"), [(10, [4, 4, 2]), (9, [4, 5]), (4, [4]), (1, [1]), (8, [4, 4]), (5, [5])])
def test_no_image_is_left_alone_in_a_batch(n: int, sizes: list[int]) -> None:
    batches = list(batch_positions(torch.arange(n), 4, smallest=2))
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches).tolist() == list(range(n))


def test_run_folders(tmp_path: Path) -> None:
    config = quick(method="standard", epochs=1)
    first = new_run_folder(config, tmp_path)
    assert first.path == tmp_path / "digits-standard-resnet8"
    train(config, out=first.path)
    assert new_run_folder(config, tmp_path).path.name == "digits-standard-resnet8-2"
    assert newest_run(tmp_path, finished=True).path == first.path
    assert weights_of(first.path) == first.best
    with pytest.raises(UserError, match="no unfinished run"):
        newest_run(tmp_path, finished=False)


def test_the_students_draws_do_not_depend_on_the_teachers_run(tmp_path: Path) -> None:
    """The same student twice: beside its teacher's training, and with the teacher given."""
    together = train(quick(), out=tmp_path / "a")
    apart = train(quick(teacher=str(together.teacher.path)), out=tmp_path / "b")
    assert all(torch.equal(value, weights(apart)[name]) for name, value in weights(together).items())


def test_test_split_selection_says_so(tmp_path: Path) -> None:
    folder = train(quick(method="standard", select_on="test", epochs=1), out=tmp_path / "run")
    assert "test_clean" in folder.records()[0]
    assert load_model(folder.best)[1].training["selected_on"] == "test"


def test_bfloat16_trains(tmp_path: Path) -> None:
    folder = train(quick(method="pgd-at", precision="bf16", epochs=1), out=tmp_path / "run")
    assert math.isfinite(folder.records()[0]["loss"])
    assert all(value.dtype != torch.bfloat16 for value in weights(folder).values())


def test_normalisation_by_the_training_images(tmp_path: Path) -> None:
    folder = train(quick(method="standard", normalize="dataset", epochs=1), out=tmp_path / "run")
    split = load_dataset("digits").train
    pixels = split.take(slice(None)) / 255.0
    model, artifact = load_model(folder.best)
    assert artifact.normalize["mean"] == pytest.approx([pixels.mean()])
    assert artifact.normalize["std"] == pytest.approx([pixels.std()])
    assert float(model.state_dict()["normalize.mean"]) == pytest.approx(pixels.mean())


def test_time_can_be_limited(tmp_path: Path) -> None:
    folder = train(quick(method="standard", epochs=50, max_seconds=0.01, select_every=50), out=tmp_path / "run")
    assert [record["event"] for record in folder.records()] == ["epoch", "end"]
    assert folder.best.is_file()


def test_metrics_are_json_a_line(tmp_path: Path) -> None:
    folder = train(quick(method="trades", epochs=1), out=tmp_path / "run")
    for line in folder.metrics.read_text().splitlines():
        json.loads(line)
