"""A batch that goes through the networks in parts against the same batch as a whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Child, together
from runs import Crash, assert_same_run
from torch import Tensor, nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state
from dgad_tk.common import UserError
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import load_dataset
from dgad_tk.methods import ADDONS, METHODS, build_method, find_method
from dgad_tk.models import MODELS
from dgad_tk.models.trained import InParts, parts_of
from dgad_tk.training.epoch import Loop, Position
from dgad_tk.training.job import Job, Progress
from dgad_tk.training.learner import Learner
from dgad_tk.training.train import train


class Smooth(nn.Module):
    """In float64 behind float32 images; smooth, so that rounding flips nothing in an attack."""

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(in_channels, 8, 3), nn.Linear(8 * 36, classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(2 * self.conv(x.double())).flatten(1))


class Normed(nn.Module):
    """With BatchNorm and Dropout."""

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.linear = nn.Dropout(0.3), nn.Linear(8 * 36, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(torch.tanh(self.norm(self.conv(x)))).flatten(1))


QUICK: dict[str, Any] = {
    "epochs": 2,
    "limit_train": 75,  # batches of 32, 32 and 11
    "batch_size": 32,
    "lr": 0.1,
    "threat": {"eps": 0.15, "step_size": 0.05, "steps": 2},
}
FIT = QUICK | {"student": "normed", "method": "trades", "checkpoint_minutes": 1e-9}


def quick(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate(QUICK | more).resolved()


def a_teacher() -> nn.Module:
    """Right on four images of ten: the method sees both kinds in every batch."""
    dataset = load_dataset("digits")
    torch.manual_seed(5)
    net = Smooth()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.from_numpy(dataset.train.take(slice(0, 200))) / 255
    y = torch.from_numpy(dataset.train.labels[:200])
    while (net(x).argmax(1) == y).double().mean() < 0.4:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def trained(config: TrainConfig, student: nn.Module, epoch: int = 1) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and figures after one epoch, and the average of the weights where there is one."""
    method = build_method(config.method, config.method_options)
    teacher = a_teacher() if find_method(config.method).needs_teacher else None
    folder, cpu = RunFolder(Path("unused")), torch.device("cpu")
    job = Job(config=config, method=method, dataset=load_dataset("digits"), folder=folder, device=cpu, teacher=teacher)
    learner = Learner(config, student)
    figures = Loop(job, learner).run(epoch, Position(), lambda position: None)
    figures.pop("samples_per_second")
    return dict(learner.best.state_dict()), figures


def smooth() -> nn.Module:
    torch.manual_seed(1)
    return Smooth()


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    *((f"dgad+{name}", {}) for name in ADDONS),
    ("dgad", {"method_options": {"subset_weights": "equal", "pcr": "l2norm", "bn_in_attack": "train"}}),
    ("dgad", {"method_options": {"mobilenet_loss": "released"}}),
    ("dgad", {"method_options": {"teacher_in_attack": "linear"}}),
    ("adaad", {"method_options": {"teacher_in_attack": "none"}}),
    ("dgad", {"method_options": {"attack_subset": "used", "pcr_weight": 0.0}}),
    ("dgad", {"method_options": {"divisor": "bs", "init": "uniform"}, "clip_grad": 0.1}),
    ("trades", {"awp_gamma": 0.01, "averaging": "ema", "ema_decay": 0.9, "freeze_bn": True}),
    ("iad", {"averaging": "swa", "swa_start": 1, "optimizer": "adamw", "lr": 0.01, "decay_weights_only": True}),
]


@pytest.mark.parametrize(("method", "values"), OPTIONS, ids=str)
def test_parts_make_the_step_of_the_whole_batch(method: str, values: dict[str, Any]) -> None:
    """Also where a term is a mean over a subset, or a product of two means: no mean of the parts' losses is that."""
    begun = dict(smooth().state_dict())
    whole, figures = trained(quick(method=method, **values), smooth())
    for accumulate in (3, 4):
        parted, same = trained(quick(method=method, accumulate=accumulate, **values), smooth())
        assert same == pytest.approx(figures, rel=1e-9)
        for name, value in whole.items():
            torch.testing.assert_close(parted[name], value, rtol=1e-9, atol=1e-12)
            assert (value - begun[name]).abs().max() > 1e-4, name


def test_bfloat16_passes_go_in_parts_too() -> None:
    """What is left between them is rounding: 8 bits a number, in the order of the sums over the images."""
    found = []
    for accumulate in (1, 4):
        torch.manual_seed(1)
        student = Normed()
        student.drop.p = 0.0
        values = {"precision": "bf16", "outer_precision": "bf16", "freeze_bn": True, "accumulate": accumulate}
        found.append(trained(quick(method="trades", **values), student))
    (whole, figures), (parted, same) = found
    assert same["loss"] == pytest.approx(figures["loss"], rel=0.02)
    for name, value in whole.items():
        torch.testing.assert_close(parted[name], value, rtol=0.05, atol=2e-3, msg=name)


@pytest.mark.parametrize(("accumulate", "most"), [(1, 32), (3, 11), (4, 8), (16, 3)])
def test_no_graph_holds_more_than_a_part(monkeypatch: pytest.MonkeyPatch, accumulate: int, most: int) -> None:
    """In the attack and in the outer step, of student and teacher: that is what bounds the memory."""
    seen: list[int] = []
    real = Smooth.forward

    def forward(self: Smooth, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(len(x))
        return real(self, x)

    teacher = a_teacher()
    monkeypatch.setattr(Smooth, "forward", forward)
    monkeypatch.setitem(globals(), "a_teacher", lambda: teacher)
    trained(quick(method="dgad", accumulate=accumulate), smooth())
    assert max(seen) == most


def test_in_one_part_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Smooth.forward
    monkeypatch.setattr(Smooth, "forward", lambda self, x: (calls.append(len(x)), real(self, x))[1])
    net = smooth()
    for most, expected in ((0, [7]), (8, [7]), (4, [3, 4, 3, 4])):
        calls.clear()
        (InParts(net, most)(torch.rand(7, 1, 8, 8)) ** 2).mean().backward()
        assert sorted(calls) == sorted(expected)


@pytest.mark.parametrize("n", range(1, 40))
@pytest.mark.parametrize("most", [0, 2, 3, 8, 50])
def test_parts_are_of_all_images_and_never_of_one(n: int, most: int) -> None:
    rows = parts_of(n, most)
    assert [image for part in rows for image in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in rows]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(n, 2)
    assert max(sizes) <= max(most, 3) or not most


def test_statistics_move_once_per_part_and_dropout_drops_the_same_twice() -> None:
    """Gradients by hand: each part normalised by itself, with the masks that it was given in the first pass."""
    torch.manual_seed(2)
    net, x = Normed().double(), torch.rand(6, 1, 8, 8, dtype=torch.float64)
    by_hand = Normed().double()
    by_hand.load_state_dict(net.state_dict())
    torch.manual_seed(3)
    InParts(net, 3)(x).square().mean().backward()
    torch.manual_seed(3)
    torch.cat([by_hand(x[:3]), by_hand(x[3:])]).square().mean().backward()
    for (name, ours), theirs in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert int(net.norm.num_batches_tracked) == 2
    assert torch.equal(net.norm.running_var, by_hand.norm.running_var)


def run(values: dict[str, Any], out: Path, resume: bool = False) -> RunFolder:
    MODELS.update({"smooth": Smooth, "normed": Normed})
    return train(TrainConfig.model_validate(values), out=out, resume=resume)


def test_a_run_resumes_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With BatchNorm, Dropout, an average and perturbed weights: to the bits of a run that nothing happened to."""
    monkeypatch.setitem(MODELS, "normed", Normed)
    more = {"accumulate": 4, "averaging": "ema", "awp_gamma": 0.005, "optimizer": "adamw", "lr": 0.01}
    config = TrainConfig.model_validate(FIT | more)
    whole = train(config, out=tmp_path / "whole")

    def stop(state: Progress) -> None:
        if (state.epoch, state.step) == (1, 2):
            raise Crash

    with pytest.raises(Crash):
        train(config, out=tmp_path / "cut", on_progress=stop)
    with pytest.raises(UserError, match="another config: accumulate: 2, not 4"):
        train(config.model_copy(update={"accumulate": 2}), out=tmp_path / "cut", resume=True)
    assert_same_run(whole, train(config, out=tmp_path / "cut", resume=True))


def test_two_processes_in_parts_train_what_one_does_at_once(tmp_path: Path) -> None:
    values = QUICK | {"student": "smooth", "method": "mart", "clip_grad": 0.5}
    Child(run, values, tmp_path / "one").result()
    for child in together(2, run, values | {"accumulate": 3}, tmp_path / "two"):
        child.result()
    one, two = (load_state(tmp_path / name / "last.ckpt")["student"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-12)
    for child in together(2, run, values | {"accumulate": 9}, tmp_path / "three"):
        how, message = child.outcome()
        assert how == "refused"
        assert "accumulate 9 leaves less than 2 images to a part of 32, which 2 processes share" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate": 0}, "greater than or equal to 1"),
        ({"accumulate": 2, "sync_bn": True}, "sync_bn takes its statistics over whole batches"),
        ({"accumulate": 2, "cuda_graph": True}, "cuda_graph replays passes of whole batches"),
        ({"compile": True, "cuda_graph": True}, "choose one"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(**values)
