"""Settings that would change nothing are refused before a run begins; shares of short runs are not among them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import written
from runs import quick
from torch import nn

from dgad_tk.common import UserError
from dgad_tk.config.moments import begun_at
from dgad_tk.config.training import TrainConfig
from dgad_tk.models import build_model
from dgad_tk.training.learner import Learner
from dgad_tk.training.starting.senseless import check_batch_norms, check_moments
from dgad_tk.training.train import train


@pytest.mark.parametrize("values", [{"freeze_bn": True}, {"bn_momentum": 0.2}], ids=str)
def test_settings_of_batch_norms_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """Of a network by its name, and of one that was handed over; the folder of the run is not made."""
    monkeypatch.chdir(tmp_path)
    written(Path("mine.py"))
    (key,) = values
    config, said = quick(method="standard", student="mine.py:lazy", **values), list[str]()
    with pytest.raises(UserError, match=f"{key} .* of BatchNorms, and mine.py:lazy has none") as caught:
        train(config, out=tmp_path / "run", on_message=said.append)
    assert caught.value.hint is not None
    assert said == []
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=f"{key} .* of BatchNorms, and python:Sequential has none"):
        train(quick(method="standard", **values), out=tmp_path / "run", student=module)
    assert not (tmp_path / "run").exists()


def test_settings_of_batch_norms_that_are_there() -> None:
    """In the student, or in a teacher that is trained first and takes the share of a batch too."""
    check_batch_norms(quick(freeze_bn=True, bn_momentum=0.2), (1, 8, 8), 10, None)
    check_batch_norms(quick(bn_momentum=0.2, student="torchvision:vgg11"), (3, 32, 32), 10, None)
    with pytest.raises(UserError, match="bn_momentum"):
        check_batch_norms(quick(bn_momentum=0.2, student="torchvision:vgg11", teacher="runs/t"), (3, 32, 32), 10, None)


@pytest.mark.parametrize(
    ("key", "values"), [("swa_start", {"averaging": "swa"}), ("awp_start", {"awp_gamma": 0.01})], ids=str
)
def test_what_begins_after_the_run(tmp_path: Path, key: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{key} 3: .* would begin after the last of 3 epochs") as caught:
        train(quick(method="standard", **{key: 3}, **values), out=tmp_path / "run")
    assert caught.value.hint == f"a share of the run, --set {key}=0.75, or an epoch up to 2"
    check_moments(quick(**{key: 2}, **values))
    check_moments(quick(**{key: 3}))  # nothing is to begin
    for epochs in (1, 2, 3):
        check_moments(quick(epochs=epochs, **{key: 0.99}, **values))


def test_a_share_begins_with_the_last_epoch_at_the_latest() -> None:
    assert [begun_at(0.75, epochs) for epochs in (1, 2, 3, 4, 200)] == [0, 1, 2, 3, 150]
    assert [begun_at(when, 2) for when in (0, 1, 2, 3)] == [0, 1, 2, 3]
    for epochs in (1, 2):
        config = TrainConfig.model_validate({"averaging": "swa", "epochs": epochs})
        learner = Learner(config, nn.Linear(2, 2))
        for epoch in range(epochs):
            assert learner.best is learner.student
            learner.end_epoch(epoch)
        assert learner.best is not learner.student


def test_statistics_of_a_network_that_was_handed_over_are_its_own(tmp_path: Path) -> None:
    """They are frozen as they are, and nothing says that they are those of a new one."""
    student, said = build_model("resnet8", in_channels=1, classes=10), list[str]()
    student(torch.rand(16, 1, 8, 8))
    config = quick(method="standard", freeze_bn=True, epochs=1, limit_train=32)
    train(config, out=tmp_path / "run", student=student, on_message=said.append)
    assert not [line for line in said if "freeze_bn" in line]
