"""What the loop does around a method's step, each option against a few lines written by hand."""

import importlib.util
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_model, load_state
from dgad_tk.ascent.folded import Inner
from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.ascent.losses import cross_entropy, kl
from dgad_tk.common import UserError
from dgad_tk.config.threat import ThreatModel
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Augmentation, load_dataset
from dgad_tk.draws import Draws
from dgad_tk.methods import METHODS, Batch, Method, Step, build_method
from dgad_tk.methods.standard import Standard
from dgad_tk.methods.trades import Trades
from dgad_tk.training import epoch as looping
from dgad_tk.training import fit as fitting
from dgad_tk.training import snapshot
from dgad_tk.training.epoch import Loop, Position
from dgad_tk.training.job import Job, Progress
from dgad_tk.training.learner import Learner, learning_rate
from dgad_tk.training.train import train

QUICK: dict[str, Any] = {
    "method": "standard",
    "epochs": 4,
    "limit_train": 80,  # batches of 32, 32 and 16
    "batch_size": 32,
    "lr": 0.1,
    "threat": {"eps": 0.15, "step_size": 0.05, "steps": 2},
}
State = dict[str, Tensor]


def quick(**more: Any) -> TrainConfig:
    return TrainConfig.model_validate(QUICK | more)


def floats(state: State) -> State:
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def assert_close(ours: State, expected: State) -> None:
    assert floats(ours).keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The student after each step of what is trained next."""
    seen: list[State] = []
    real = Learner.learn

    def learn(self: Learner, rate: float) -> None:
        real(self, rate)
        seen.append(floats(self.student.state_dict()))

    monkeypatch.setattr(Learner, "learn", learn)
    return seen


def test_ema_is_the_exponential_average_over_the_steps(tmp_path: Path, after_steps: list[State]) -> None:
    """It begins with the weights after the first step, and takes BatchNorm's statistics along."""
    folder = train(quick(averaging="ema", ema_decay=0.8), out=tmp_path / "run")
    assert len(after_steps) == 4 * 3
    average = after_steps[0]
    for state in after_steps[1:]:
        average = {name: 0.8 * value + 0.2 * state[name] for name, value in average.items()}
    state = load_state(folder.last)
    assert_close({name.removeprefix("module."): value for name, value in state["averaged"].items()}, average)
    assert_close(state["student"], after_steps[-1])


def test_the_average_is_what_is_selected_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = iter(range(1, 99))
    monkeypatch.setattr(fitting, "accuracies", lambda *arguments, **more: (next(rising) / 99, 0.0))
    folder = train(quick(averaging="ema", ema_decay=0.9), out=tmp_path / "run")
    averaged, best = load_state(folder.last)["averaged"], load_file(folder.best)
    assert all(torch.equal(value, averaged[f"module.{name}"]) for name, value in best.items())
    assert not torch.equal(best["net.conv1.weight"], load_state(folder.last)["student"]["net.conv1.weight"])
    assert load_model(folder.best)[1].training["averaging"] == "ema"


@pytest.mark.parametrize(("start", "late"), [(2, (2, 3, 4)), (0.6, (3, 4)), (4, (4,))])
def test_swa_is_the_mean_of_the_late_epochs(
    tmp_path: Path, after_steps: list[State], monkeypatch: pytest.MonkeyPatch, start: float, late: tuple[int, ...]
) -> None:
    rising = iter(range(1, 99))
    monkeypatch.setattr(fitting, "accuracies", lambda *arguments, **more: (next(rising) / 99, 0.0))
    folder = train(quick(averaging="swa", swa_start=start, epochs=5), out=tmp_path / "run")
    ends = after_steps[2::3]
    assert len(ends) == 5
    mean = {name: torch.stack([ends[epoch][name] for epoch in late]).mean(dim=0) for name in ends[0]}
    assert int(load_state(folder.last)["averaged"]["n_averaged"]) == len(late)
    assert_close(load_file(folder.best), mean)


def test_before_swa_begins_the_student_is_selected(
    tmp_path: Path, after_steps: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_epochs = iter([0.1, 0.3, 0.2, 0.1])
    monkeypatch.setattr(fitting, "accuracies", lambda *arguments, **more: (next(at_epochs), 0.0))
    folder = train(quick(averaging="swa", swa_start=3, select_on="test"), out=tmp_path / "run")
    assert folder.records()[-1]["best_epoch"] == 1
    assert_close(load_file(folder.best), after_steps[3 * 1 + 2])


class Tiny(nn.Module):
    """In float64, behind float32 images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x.double())).relu().flatten(1))


@dataclass(frozen=True, kw_only=True)
class Seen(Method):
    """Another method, that keeps the batches and what was made of them."""

    base: Method
    batches: list[tuple[Batch, Step]] = field(default_factory=list)

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        step = self.base.step(student, teacher, batch, threat)
        self.batches.append((batch, step))
        return step


def one_step(config: TrainConfig, base: Method, student: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One epoch of one batch: the batches that the method was given, and weights and gradients when they were used."""
    dataset, method, used = load_dataset("digits"), Seen(base=base), {}
    real = Learner.learn

    def learn(self: Learner, rate: float) -> None:
        used["weights"] = {name: value.detach().clone() for name, value in self.student.named_parameters()}
        used["gradients"] = {name: value.grad.clone() for name, value in self.student.named_parameters()}
        real(self, rate)
        used["clipped"] = {name: value.grad.clone() for name, value in self.student.named_parameters()}

    monkeypatch.setattr(Learner, "learn", learn)
    config = config.model_copy(update={"limit_train": config.batch_size}).resolved()
    dataset = replace(dataset, spec=replace(dataset.spec, augmentation=Augmentation(padding=0, flip=False)))
    folder, cpu = RunFolder(Path("unused")), torch.device("cpu")
    job = Job(config=config, method=method, dataset=dataset, folder=folder, device=cpu)
    Loop(job, Learner(config, student)).run(0, Position(), lambda position: None)
    return method.batches, used


def backward(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> State:
    net.zero_grad()
    loss(net).backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("attacks", [False, True])
def test_awp_takes_the_gradient_at_perturbed_weights(monkeypatch: pytest.MonkeyPatch, attacks: bool) -> None:
    """v = gamma |w|/|g| g for tensors of more than one dimension (Wu et al., NeurIPS 2020, eq. 8), on the same x'."""
    gamma, base = 0.02, Trades(beta=2.0) if attacks else Standard()
    student = Tiny()
    batches, used = one_step(quick(awp_gamma=gamma, method="trades"), base, student, monkeypatch)
    (first, made), (second, again) = batches
    assert torch.equal(first.x, second.x)
    x, y, adv = first.x, first.y, made.x_adv
    if attacks:
        assert first.x_adv is None
        assert torch.equal(second.x_adv, adv)
        assert torch.equal(again.x_adv, adv)

    def loss(net: nn.Module) -> Tensor:
        if not attacks:
            return nn.functional.cross_entropy(net(x), y)
        natural, robust, target = net(x), net(adv), net(x).softmax(1)
        gap = (target * (target.log() - robust.log_softmax(1))).sum(1).mean()
        return nn.functional.cross_entropy(natural, y) + 2 * gap

    reference = Tiny().train()
    first_gradients = backward(reference, loss)
    reference = Tiny().train()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if weight.ndim > 1:
                g = first_gradients[name]
                weight += gamma * weight.norm() / g.norm() * g
    expected = backward(reference, loss)
    for name, weight in Tiny().named_parameters():
        assert torch.equal(used["weights"][name], weight), name  # put back to the last bit
        torch.testing.assert_close(used["gradients"][name], expected[name], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(used["gradients"]["linear.weight"], first_gradients["linear.weight"], rtol=1e-3)
    # The statistics moved once, in the pass on perturbed weights.
    assert int(student.norm.num_batches_tracked) == int(reference.norm.num_batches_tracked)
    torch.testing.assert_close(student.norm.running_mean, reference.norm.running_mean)
    torch.testing.assert_close(student.norm.running_var, reference.norm.running_var)


def test_awp_begins_when_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perturbed: list[int] = []
    real = Learner.perturbed
    monkeypatch.setattr(Learner, "perturbed", lambda self: perturbed.append(1) or real(self))
    config = quick(awp_gamma=0.01, awp_start=0.5)
    seen: list[int] = []
    train(config, out=tmp_path / "run", on_progress=lambda state: seen.append(len(perturbed)))
    assert [seen[4 * epoch + 3] for epoch in range(4)] == [0, 0, 3, 6]


@pytest.mark.parametrize("largest", [0.01, 1e6])
def test_the_gradient_is_clipped_as_a_whole(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    _, used = one_step(quick(clip_grad=largest), Standard(), Tiny(), monkeypatch)
    norm = torch.cat([value.flatten() for value in used["gradients"].values()]).norm()
    assert 0.01 < norm < 1e6
    for name, value in used["clipped"].items():
        expected = used["gradients"][name] * min(1.0, largest / float(norm))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-12)


def test_the_step_is_that_of_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nesterov's momentum, weight decay and the rate of the moment; the first step of either momentum."""
    student = Tiny()
    config = quick(momentum=0.5, nesterov=True, weight_decay=0.1, schedule="constant")
    _, used = one_step(config, Standard(), student, monkeypatch)
    for name, weight in student.named_parameters():
        gradient = used["gradients"][name] + 0.1 * used["weights"][name]
        torch.testing.assert_close(weight.data, used["weights"][name] - 0.1 * 1.5 * gradient)


def scores(monkeypatch: pytest.MonkeyPatch, clean: list[float]) -> None:
    found = iter(clean)
    monkeypatch.setattr(fitting, "accuracies", lambda *arguments, **more: (next(found), 0.0))


@pytest.mark.parametrize(
    ("options", "clean", "epochs", "best"),
    [
        ({"early_stop": 2}, [0.1, 0.3, 0.2, 0.3, 0.9], 4, 1),
        ({"early_stop": 1}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 9, 8),
        ({"early_stop": 3}, [0.5, 0.4, 0.4, 0.6, 0.1, 0.1, 0.1], 7, 3),
        # Between two selections nobody knows whether an epoch is better.
        ({"early_stop": 1, "select_every": 3}, [0.1, 0.2, 0.2], 9, 5),
        ({"early_stop": 2, "select_every": 4}, [0.3, 0.2], 8, 3),
    ],
)
def test_a_run_ends_when_it_gets_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], clean: list[float], epochs: int, best: int
) -> None:
    scores(monkeypatch, clean)
    folder = train(quick(**options, limit_train=32, epochs=9), out=tmp_path / "run")
    assert folder.finished()
    end = folder.records()[-1]
    assert (end["epoch"], end["best_epoch"]) == (epochs, best)
    assert train(quick(**options, limit_train=32, epochs=9), out=folder.path, resume=True).records()[-1] == end


def test_a_run_whose_time_is_up_has_judged_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the limit passes while the epoch is being saved."""
    real = snapshot.save_state

    def slow(*arguments: Any) -> None:
        real(*arguments)
        clock[0] += 10.0

    clock = [0.0]
    monkeypatch.setattr(fitting._Run, "_elapsed", lambda self: clock[0])
    monkeypatch.setattr(snapshot, "save_state", slow)
    folder = train(quick(max_seconds=15, select_every=50, epochs=50, limit_train=32), out=tmp_path / "run")
    assert folder.finished()
    assert folder.records()[-1] == {"event": "end", "epochs": 50, "epoch": 3, "best_epoch": 2, "seconds": 30.0}


def test_the_end_says_how_long_it_took(tmp_path: Path) -> None:
    records = train(quick(), out=tmp_path / "run").records()
    assert records[-1]["seconds"] >= sum(record["seconds"] for record in records[:-1]) > 0


def test_warm_up_rises_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = Learner.learn
    monkeypatch.setattr(Learner, "learn", lambda self, rate: (rates.append(rate), real(self, rate)))
    folder = train(quick(warmup_epochs=2, schedule="constant"), out=tmp_path / "run")
    assert rates == pytest.approx([0.1 * min(step / 6, 1) for step in range(12)])
    assert [record["lr"] for record in folder.records()[:-1]] == [rates[2], rates[5], rates[8], rates[11]]
    assert rates[5] == learning_rate(quick(warmup_epochs=2, schedule="constant"), 1 + 2 / 3)


def test_select_on_test_trains_on_all_but_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, fetched = load_dataset("digits"), set()
    real = looping.on_device

    def fetch(*arguments: Any) -> Any:
        found = real(*arguments)
        fetched.update(found[2].tolist())
        return found

    monkeypatch.setattr(looping, "on_device", fetch)
    for select_on, splits in (("val", [dataset.train]), ("test", [dataset.train, dataset.val])):
        fetched.clear()
        config = quick(select_on=select_on, limit_train=None, epochs=1, batch_size=256)
        folder = train(config, out=tmp_path / select_on)
        assert fetched == {index for split in splits for index in split.index.tolist()}
        about = load_model(folder.best)[1].training
        assert about["selection_images"] == len(dataset.val if select_on == "val" else dataset.test)


def test_a_loss_that_is_no_number_leaves_what_led_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Explodes(Trades):
        def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
            step = super().step(student, teacher, batch, threat)
            return replace(step, loss=step.loss * math.inf) if batch.epoch == 1 and len(batch.x) == 16 else step

    monkeypatch.setitem(METHODS, "trades", Explodes)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="student: the loss became inf in epoch 2, step 3.*non-finite-batch") as error:
        train(quick(method="trades", checkpoint_minutes=1e-9), out=folder.path)
    path = folder.path / "non-finite-batch.safetensors"
    assert str(path) in error.value.message
    found = load_file(path)
    x, adv = found["x"], found["x_adv"]
    assert x.shape == adv.shape == (16, 1, 8, 8)
    assert 0 < (adv - x).abs().max() <= 0.15 + 1e-6
    split = load_dataset("digits").train
    at = [split.index.tolist().index(index) for index in found["index"].tolist()]
    assert torch.equal(found["y"], torch.from_numpy(split.labels[at]))
    # Weights of before the step, as the checkpoint has them, by which the logits can be had once more.
    saved = load_state(folder.last)["student"]
    assert all(torch.equal(found[f"student.{name}"], value) for name, value in saved.items() if "weight" in name)
    assert found["logits"].shape == (16, 10)
    with safe_open(path, framework="pt") as file:
        assert '"epoch": 1' in file.metadata()["about"]


def test_dropout_is_drawn_by_the_seed_and_not_by_torchs_state(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        torch.rand(1 + number)  # another state of torch's own generator
        before = torch.get_rng_state()
        config = quick(student="torchvision:mobilenet_v2", limit_train=16, batch_size=8, epochs=1)
        found.append(load_file(train(config, out=tmp_path / str(number)).best))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_outer_precision_is_that_of_the_forwards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    @dataclass(frozen=True, kw_only=True)
    class Watched(Standard):
        def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
            conv = student.net.net.conv1
            handle = conv.register_forward_hook(lambda module, images, out: seen.add((out.dtype, module.weight.dtype)))
            step = super().step(student, teacher, batch, threat)
            handle.remove()
            assert step.loss.dtype == step.logits.dtype == torch.float32
            return step

    monkeypatch.setitem(METHODS, "standard", Watched)
    losses = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for sync in (False, True):
            seen.clear()
            folder = train(quick(outer_precision=precision, sync_bn=sync), out=tmp_path / f"{precision}{sync}")
            assert seen == {(dtype, torch.float32)}
            assert all(value.dtype in (torch.float32, torch.int64) for value in load_file(folder.best).values())
            losses[precision, sync] = folder.records()[-2]["loss"]
    assert len(set(losses.values())) > 1
    assert list(losses.values()) == pytest.approx([losses["fp32", False]] * 4, rel=0.05)


def test_bfloat16_attacks_nearly_as_well(victim: tuple[nn.Module, Any, Any]) -> None:
    """x' stays in the ball, and the objective that it reaches, measured in float32, is within 2 % of float32's."""
    net, images, labels = victim
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    teacher = nn.Sequential(net, nn.Softsign()).eval()  # another answer for each image
    noise = partial(draw_noise, Draws(0), "attack", x.shape[1:], torch.arange(len(x)))
    threat = ThreatModel(eps=0.1, step_size=0.025, steps=10)
    for name, objective in (
        ("pgd-at", lambda z: cross_entropy(net(z), y)),
        ("dgad", lambda z: kl(teacher(z), net(z))),
    ):
        reached = []
        for precision in ("fp32", "bf16"):
            batch = Batch(x, y, noise, len(x), inner=Inner(precision))
            adv = build_method(name, {}).step(net, teacher, batch, threat).x_adv
            assert adv.dtype == torch.float32
            assert (adv - x).abs().max() <= 0.1 + 1e-6
            assert 0 <= adv.min() <= adv.max() <= 1
            reached.append(float(objective(adv).mean()))
        assert reached[0] > 1.2 * float(objective(x).mean())
        assert reached[1] == pytest.approx(reached[0], rel=0.02), name


def test_compiling_changes_nothing_but_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the backend that needs no compiler: that the right networks are compiled, and used, in eval mode."""
    compiled: list[nn.Module] = []
    real = torch.compile

    def watched(net: nn.Module, **more: Any) -> Any:
        compiled.append(net)
        return real(net, backend="eager", **more)

    monkeypatch.setattr(torch, "compile", watched)
    teacher = train(quick(), out=tmp_path / "teacher")
    results = []
    for on in (False, True):
        config = quick(method="dgad", teacher=str(teacher.path), compile=on, epochs=2)
        results.append(load_state(train(config, out=tmp_path / str(on)).last)["student"])
        assert bool(compiled) is on
    assert len(compiled) == 2  # the student and the teacher, once each
    assert not any(net.training for net in compiled)
    for name, value in floats(results[0]).items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-5)


class Writer:
    """Stands in for TensorBoard's, which need not be installed."""

    made: list["Writer"]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        Writer.made.append(self)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))


def test_tensorboard_gets_each_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    Writer.made = []
    real = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "tensorboard" else real(name))

    def stop(state: Progress) -> None:
        if state.epoch == 2:
            raise InterruptedError

    with suppress(InterruptedError):
        train(quick(), out=tmp_path / "run", on_progress=stop)
    folder = train(quick(), out=tmp_path / "run", resume=True)
    first, second = Writer.made
    assert first.closed
    assert second.closed
    assert first.folder == second.folder == str(folder.path / "tensorboard")
    assert (first.purge_step, second.purge_step) == (1, 3)
    written = {(name, step): value for name, value, step in first.scalars + second.scalars}
    for record in folder.records()[:-1]:
        for name, value in record.items():
            assert name in ("event", "epoch") or written.pop((name, record["epoch"] + 1)) == value
    assert not written


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    folder = train(quick(epochs=1), out=tmp_path / "run")
    assert not (folder.path / "tensorboard").exists()
