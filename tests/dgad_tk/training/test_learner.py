"""What moves the weights, against steps written by hand: optimizers, weight decay, BatchNorm that is frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Crash, assert_same_run, quick
from torch import Tensor, nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_model, load_state
from dgad_tk.common import UserError
from dgad_tk.config.optimizers import OPTIMIZERS
from dgad_tk.config.training import LATER, TrainConfig
from dgad_tk.methods import Batch, build_method
from dgad_tk.models import build_model
from dgad_tk.training.job import Progress
from dgad_tk.training.learner import Learner, late_statistics, norms_and_biases
from dgad_tk.training.train import train


class Net(nn.Module):
    """Every kind of parameter: weights, biases, and norms of one dimension and of more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.layer, self.group = nn.LayerNorm([4, 6, 6]), nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4 * 36, 3)
        with torch.no_grad():
            for parameter in self.parameters():  # none is 0, which would hide what decays
                parameter.copy_(torch.randn(parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.group(self.layer(self.norm(self.conv(x)))).flatten(1))


WEIGHTS = {"conv.weight", "linear.weight"}


def config_of(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"schedule": "constant", "lr": 0.1, **more})


def one_step(config: TrainConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights before a step, their gradients, and the weights after it."""
    net = Net().double()
    learner = Learner(config, net)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64)
    learner.learn(0.1)
    after = dict(net.named_parameters())
    return before, {name: value.grad for name, value in after.items()}, after


@pytest.mark.parametrize("weights_only", [False, True])
def test_weight_decay_is_of_all_or_of_weights(weights_only: bool) -> None:
    """SGD's first step: lr (g + decay w)."""
    config = config_of(weight_decay=0.3, momentum=0.5, decay_weights_only=weights_only)
    before, gradients, after = one_step(config)
    assert len(before) == 10
    for name, weight in before.items():
        decay = 0.3 if name in WEIGHTS or not weights_only else 0.0
        torch.testing.assert_close(after[name], weight - 0.1 * (gradients[name] + decay * weight))


@pytest.mark.parametrize("weights_only", [False, True])
def test_adamw_decays_beside_its_step(weights_only: bool) -> None:
    """Its first step is lr g / (|g| + eps), whatever the betas are, beside lr decay w (Loshchilov and Hutter, 2019)."""
    config = config_of(
        optimizer="adamw", weight_decay=0.3, adam_eps=0.5, adam_betas=(0.7, 0.8), decay_weights_only=weights_only
    )
    before, gradients, after = one_step(config)
    for name, weight in before.items():
        decay = 0.3 if name in WEIGHTS or not weights_only else 0.0
        moved = gradients[name] / (gradients[name].abs() + 0.5)
        torch.testing.assert_close(after[name], weight - 0.1 * decay * weight - 0.1 * moved)


def test_norms_and_biases_are_named() -> None:
    net = Net()
    spared = {id(parameter) for parameter in norms_and_biases(net)}
    assert {name for name, parameter in net.named_parameters() if id(parameter) not in spared} == WEIGHTS


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v3_small", "torchvision:vit_b_16"])
def test_in_networks_too(name: str) -> None:
    with torch.device("meta"):
        net = build_model(name, in_channels=3, classes=10)
    spared = {id(parameter) for parameter in norms_and_biases(net)}
    for key, parameter in net.named_parameters():
        assert (id(parameter) in spared) == (parameter.ndim <= 1), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_resumes(tmp_path: Path, name: str) -> None:
    """A run that was cut within an epoch ends with the bits of one that nothing happened to."""
    config = quick(method="standard", optimizer=name, decay_weights_only=True, epochs=4, warmup_epochs=1)
    whole = train(config, out=tmp_path / "whole")
    losses = [record["loss"] for record in whole.records() if record["event"] == "epoch"]
    assert losses[-1] < 0.9 * losses[0]

    def stop(state: Progress) -> None:
        if (state.epoch, state.step) == (2, 2):
            raise Crash

    with pytest.raises(Crash):
        train(config.model_copy(update={"checkpoint_minutes": 1e-9}), out=tmp_path / "cut", on_progress=stop)
    other = next(each for each in OPTIMIZERS if each != name)
    with pytest.raises(UserError, match=f"another config: .*optimizer: {other}, not {name}"):
        train(config.model_copy(update={"optimizer": other}), out=tmp_path / "cut", resume=True)
    assert_same_run(whole, train(config, out=tmp_path / "cut", resume=True))


def test_adamw_has_rates_of_its_own() -> None:
    """The datasets' rates are SGD's; what somebody set stays, and an auto teacher takes the student's."""
    config = TrainConfig.model_validate({"optimizer": "adamw"}).resolved()
    assert (config.lr, config.weight_decay, config.teacher_lr) == (1e-3, 1e-2, 1e-3)
    config = TrainConfig.model_validate({"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.0}).resolved()
    assert (config.lr, config.weight_decay, config.teacher_lr) == (0.02, 0.0, 0.02)
    config = TrainConfig.model_validate({"optimizer": "adamw", "teacher_lr": 0.05}).resolved()
    assert (config.lr, config.teacher_lr) == (1e-3, 0.05)
    config = TrainConfig.model_validate({}).resolved()
    assert (config.lr, config.weight_decay, config.teacher_lr) == (0.2, 5e-4, 0.1)


def test_texts_of_older_runs_stay_what_they_were() -> None:
    text = TrainConfig.model_validate({}).resolved().to_yaml()
    assert not any(f"{key}:" in text for key in LATER)
    values = {"accumulate": 4, "augment": ["flip"], "bn_momentum": 0.3, "freeze_bn": True}
    text = TrainConfig.model_validate(values).to_yaml()
    assert all(f"{key}:" in text for key in values)
    assert "optimizer:" not in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov is of sgd, and the optimizer is adamw"),
        ({"optimizer": "adamw", "momentum": 0.8}, "momentum is of sgd, and the optimizer is adamw"),
        ({"adam_eps": 1e-6}, "adam_eps is of adamw, and the optimizer is sgd"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas must be from 0 to below 1"),
        ({"adam_betas": [0.9]}, "adam_betas"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        TrainConfig.model_validate(values)


@pytest.mark.parametrize("method", ["dgad", "ard", "score", "pgd-at"])
def test_frozen_statistics_stay_and_are_used(method: str) -> None:
    """In the attack and in the outer step, in every mode of the attack's BatchNorm; affine weights learn."""
    torch.manual_seed(0)
    student = build_model("resnet8", in_channels=1, classes=10)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    learner = Learner(quick(freeze_bn=True), student)
    learner.begin_epoch()
    assert student.training
    buffers = {name: value.clone() for name, value in student.named_buffers()}
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    teacher = build_model("resnet8", in_channels=1, classes=10).eval().requires_grad_(False)
    batch = Batch(x, y, lambda kind: torch.zeros_like(x), 8)
    step = build_method(method, {}).step(learner.shared, teacher, batch, learner.config.resolved().attack)
    step.loss.backward()
    assert all(torch.equal(value, buffers[name]) for name, value in student.named_buffers())
    assert all(parameter.grad is not None for parameter in student.parameters())
    with torch.no_grad():
        expected = student.eval()(step.x_adv)
    torch.testing.assert_close(step.logits.detach(), expected)


def test_statistics_take_the_share_that_is_set() -> None:
    net = Net()
    learner = Learner(config_of(bn_momentum=0.4), net)
    learner.begin_epoch()
    x = torch.rand(8, 1, 8, 8)
    net(x)
    with torch.no_grad():
        maps = net.conv(x)
    torch.testing.assert_close(net.norm.running_mean, 0.4 * maps.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(net.norm.running_var, 0.6 + 0.4 * maps.var(dim=(0, 2, 3)))


def test_statistics_that_come_late_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    config = quick(method="standard", student="torchvision:mobilenet_v3_small", epochs=1, limit_train=32)
    train(config, out=tmp_path / "run", on_message=said.append)
    (line,) = [line for line in said if "BatchNorm" in line]
    assert "takes 0.01 of each step into its running statistics: after these 1 steps they hold 99.0%" in line
    said.clear()
    train(config.model_copy(update={"bn_momentum": 0.1}), out=tmp_path / "other", on_message=said.append)
    assert not [line for line in said if "BatchNorm" in line]
    assert late_statistics(Net(), 1) is None  # the usual momentum: whoever trains for one step knows
    slow = nn.BatchNorm2d(3, momentum=0.01)
    assert [late_statistics(slow, steps) is None for steps in (600, 800)] == [False, True]


def test_a_frozen_run_ends_with_the_statistics_it_began_with(tmp_path: Path) -> None:
    said: list[str] = []
    config = quick(freeze_bn=True, accumulate=2, epochs=2)
    folder = train(config, out=tmp_path / "run", on_message=said.append)
    state = load_state(folder.last)["student"]
    means = [value for name, value in state.items() if name.endswith("running_mean")]
    assert means
    assert all(not value.any() for value in means)
    assert any(value.any() for name, value in state.items() if name.endswith("bn1.bias"))
    assert any("freeze_bn without weights to start from" in line for line in said)
    about = load_model(folder.best)[1].training
    assert (about["freeze_bn"], about["accumulate"]) == (True, 2)
    assert "optimizer" not in about
    teacher = load_state(RunFolder(folder.path).teacher.last)["student"]  # made anew, so that its statistics move
    assert all(value.any() for name, value in teacher.items() if name.endswith("running_mean"))
