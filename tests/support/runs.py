"""Short training runs, how one is interrupted, and when two are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state
from dgad_tk.config.training import TrainConfig
from dgad_tk.training.job import Progress
from dgad_tk.training.train import train

QUICK: dict[str, Any] = {
    "epochs": 3,
    "limit_train": 96,
    "batch_size": 32,
    "teacher_model": "resnet8",
    "teacher_epochs": 2,
    "threat": {"eps": 0.15, "step_size": 0.05, "steps": 2},
}


def quick(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate(QUICK | more)


def equal(a: Any, b: Any) -> bool:
    """To the last bit, tensors inside of containers too."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if "second" not in key}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Student, optimiser, averages and position in last.ckpt, the whole of best.safetensors, all figures, all files."""
    assert [untimed(record) for record in one.records()] == [untimed(record) for record in other.records()]
    assert one.best.read_bytes() == other.best.read_bytes()
    assert one.images.read_bytes() == other.images.read_bytes()
    states = [load_state(folder.last) for folder in (one, other)]
    for state in states:
        state["state"] = untimed(state["state"]) | {"position": untimed(state["state"]["position"])}
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert equal(value, states[1][key]), key
    assert {path.name for path in one.path.iterdir()} == {path.name for path in other.path.iterdir()}
    if one.teacher.path.exists():
        assert_same_run(one.teacher, other.teacher)


class Crash(Exception):
    pass


def interrupted(out: Path, config: TrainConfig, epoch: int = 1) -> RunFolder:
    """A run that ended after the first step of `epoch`."""

    def stop(state: Progress) -> None:
        if state.role == "student" and state.epoch == epoch:
            raise Crash

    with pytest.raises(Crash):
        train(config, out=out, on_progress=stop)
    return RunFolder(out)
