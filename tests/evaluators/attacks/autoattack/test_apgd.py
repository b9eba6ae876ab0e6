"""APGD against its authors' code, iterate by iterate, and against margins that are known."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from pyautoattack import autopgd_base
from shared import Victim
from torch import Tensor, nn
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from dgad_tk.ascent.folded import Folded
from dgad_tk.ascent.l1_projection import l1_correction
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.apgd.state import LinfAscents
from evaluators.attacks.autoattack.dlr import dlr, targeted_dlr
from evaluators.target.estimators import Counted, to_estimator

pytestmark = pytest.mark.portable

THEIR_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.012, "l2": 0.1, "l1": 0.5}


@dataclass
class Recorded:
    """Noise that the authors' generator gave, by number of ascent and index of image."""

    streams: list[Tensor]

    def uniform(self, purpose: str, shape: Any, *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        assert shape == self.streams[epoch].shape[1:]
        return self.streams[epoch][index]

    normal = uniform

    def integers(self, *_: Any, **__: Any) -> Tensor:
        raise AssertionError("APGD draws no integers")


def small_net(classes: int = 10, channels: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, classes)).eval().requires_grad_(False)


def images_for(net: nn.Module, n: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, net(x).argmax(1)


def art(net: nn.Module, classes: int = 10, channels: int = 1, **settings: Any) -> PyTorchClassifier:
    return PyTorchClassifier(
        net, loss=None, input_shape=(channels, 8, 8), nb_classes=classes, clip_values=(0.0, 1.0), **settings
    )


def authors(
    net: nn.Module, x: Tensor, y: Tensor, *, norm: str, loss: str, targets: int, steps: int, wide: bool
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Their ascents of all images: the noise of each, who withstood all, and points and losses of the last."""
    settings: Any = {"n_iter": steps, "norm": THEIR_NORM[norm], "eps": EPS[norm], "device": torch.device("cpu")}
    if targets:
        attack = autopgd_base.APGDAttack_targeted(net, n_target_classes=targets, **settings)
    else:
        attack = autopgd_base.APGDAttack(net, loss=loss, **settings)
    attack.init_hyperparam(x)
    draw = torch.rand if norm == "linf" else torch.randn
    held, streams = torch.ones(len(x), dtype=torch.bool), []
    torch.manual_seed(5)
    for rank in range(max(1, targets)):
        state = torch.random.get_rng_state()
        streams.append(draw(x.shape))
        torch.random.set_rng_state(state)
        attack.y_target = net(x).sort(dim=1)[1][:, -(rank + 2)]
        if wide:
            first = math.ceil(0.3 * steps)
            radii = [3 * EPS[norm], 2 * EPS[norm], EPS[norm]]
            best, withstood, highest, _ = attack.decr_eps_pgd(x, y, radii, [first, first, steps - 2 * first])
        else:
            best, withstood, highest, _ = attack.attack_single_run(x, y)
        held &= withstood
    return streams, held, best, highest


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("loss", "targets"), [("ce", 0), ("dlr", 0), ("dlr", 2)])
@pytest.mark.parametrize(("norm", "wide"), [("linf", False), ("l2", False), ("l1", False), ("l1", True)])
def test_iterates_are_the_authors(
    norm: Any, wide: bool, loss: Any, targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net()
    x, y = images_for(net, 12)
    if wide:
        # Their projection leaves last bits behind that it then counts as changed pixels, so the projection itself is
        # compared in a test of its own.
        monkeypatch.setattr(autopgd_base, "L1_projection", l1_correction)
    setting: dict[str, Any] = {"norm": norm, "loss": loss, "targets": targets, "steps": 60, "wide": wide}
    streams, held, best, highest = authors(net, x, y, **setting)
    assert 0 < held.sum() < len(x)
    attack = APGD(art(net), eps=EPS[norm], batch_size=7, **setting)
    attack.draws = Recorded(streams)
    found = attack.search(x, y, torch.arange(len(x)))
    torch.testing.assert_close(found[held], best[held], rtol=0, atol=1e-9)
    rank = net(x).argsort(dim=1)[:, -1 - max(1, targets)]
    torch.testing.assert_close(attack.objective(net(found), y, rank)[held], highest[held], rtol=0, atol=1e-9)
    assert torch.equal(net(found).argmax(1) == y, held)


def test_checkpoints_are_those_of_the_example() -> None:
    """In APGD's docstring: an ascent of 100 steps that rose in 16 of the first 22 is halved and goes back."""
    assert [step for step, window in enumerate(LinfAscents.windows(100)) if window] == [22, 41, 57, 70, 80, 87, 93, 99]
    x = torch.full((2, 4), 0.5)
    state = LinfAscents.begin(x, torch.ones(2, 4), torch.full((2, 1), 0.1), torch.zeros(2), torch.zeros(2))
    for step in range(23):
        state.observe(torch.tensor([1.0 if step <= 16 else 0.0, 1.0]) * step, torch.ones(2, 4))
    state.rises = torch.tensor([16.0, 17.0])
    assert state.check(torch.tensor([22.0, 22.0])).tolist() == [True, False]
    torch.testing.assert_close(state.step_size[:, 0], torch.tensor([0.1, 0.2]))


@pytest.mark.usefixtures("double")
def test_on_digits_as_the_authors(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network with BatchNorm that we fold: the same points, and the same images withstand.

    Its ReLUs turn a last bit into another path, so that in float32 a tenth of the images end elsewhere.
    """
    net = copy.deepcopy(victim[0]).double()
    x, y = torch.from_numpy(victim[1]).double(), torch.from_numpy(victim[2])
    kept = net(x).argmax(1) == y
    x, y = x[kept], y[kept]
    setting: dict[str, Any] = {"norm": "l2", "loss": "ce", "targets": 0, "steps": 30, "wide": False}
    monkeypatch.setitem(EPS, "l2", 0.4)
    streams, held, best, _ = authors(net, x, y, **setting)
    attack = APGD(art(net), eps=EPS["l2"], **setting)
    assert isinstance(attack.victim.module, Folded)
    attack.draws = Recorded(streams)
    found = attack.search(x, y, torch.arange(len(x)))
    assert 0 < held.sum() < len(x)
    assert torch.equal(net(found).argmax(1) == y, held)
    torch.testing.assert_close(found[held], best[held], rtol=0, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_image_alone_or_in_company(norm: Any) -> None:
    net = small_net(channels=3)
    x, y = images_for(net, 8, channels=3)
    index = torch.arange(8) + 100

    def search(batch_size: int, rows: Any = slice(None)) -> Tensor:
        setting: dict[str, Any] = {"targets": 2, "steps": 12, "restarts": 2, "seed": 3, "wide": False}
        attack = APGD(art(net, channels=3), norm=norm, eps=4 * EPS[norm], batch_size=batch_size, **setting)
        return attack.search(x[rows], y[rows], index[rows])

    whole = search(250)
    held = net(whole).argmax(1) == y
    assert 0 < held.sum() < 8
    for other in (search(1), search(5), search(5, torch.arange(7, -1, -1)).flip(0)):
        assert torch.equal(net(other).argmax(1) == y, held)
        # The sign of a gradient that is zero but for rounding may differ.
        assert torch.isclose(other, whole, rtol=0, atol=1e-9)[held].float().mean() > 0.995


@pytest.mark.parametrize("share", [1 - 1e-3, 1 + 1e-3])
def test_linear_model_breaks_above_its_margin(share: float) -> None:
    module, split = TwoClassLinear().requires_grad_(False), linear_split(12)
    x = split.take(slice(None)) / np.float32(255)
    margins = module.margins(x, "linf")
    for each, label, margin in zip(x, split.labels, margins, strict=True):
        attack = APGD(to_estimator(as_torch(module, SHAPE)), eps=float(margin * share), steps=10)
        found = attack.generate(each[None], np.asarray([label]))
        broken = attack.estimator.predict(found).argmax(1)[0] != label
        assert broken == (share > 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stays_in_the_ball(norm: Any) -> None:
    net = small_net()
    x, y = images_for(net, 10)
    for eps in (0.0, EPS[norm], 1.0 if norm == "linf" else 10.0):
        found = torch.from_numpy(APGD(art(net), norm=norm, eps=eps, steps=12).generate(x.numpy(), y.numpy()))
        away = torch.linalg.vector_norm((found - x).flatten(1), ord={"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1)
        assert (away <= eps + 1e-5).all()
        assert found.min() >= 0
        assert found.max() <= 1


def test_passes_are_those_of_the_paper() -> None:
    """A robust image: `steps` passes forward and backward an ascent, and its last point is judged without gradient."""

    def passes(**setting: Any) -> tuple[float, float]:
        net = small_net()
        counted = Counted(net)
        attack = APGD(art(counted), eps=1e-4, batch_size=6, **setting)
        x, y = images_for(net, 9)
        attack.generate(x.numpy(), y.numpy())
        return counted.forwards / 9, counted.backwards / 9

    assert passes(steps=10) == (11, 10)
    assert passes(steps=10, restarts=2) == (22, 20)
    assert passes(steps=10, targets=3) == (34, 30)  # once on the clean image, for its classes
    assert passes(steps=10, norm="l1") == (13, 10)  # three radii
    assert passes(steps=10, eot=4) == (41, 40)


def test_broken_images_cost_nothing_more() -> None:
    net = small_net()
    counted = Counted(net)
    x, y = images_for(net, 9)
    APGD(art(counted), eps=1e-4, targets=3, steps=10).generate(x.numpy(), (y.numpy() + 1) % 10)
    assert (counted.forwards, counted.backwards) == (9, 0)


def test_gradients_are_averaged_over_passes() -> None:
    class Noisy(nn.Module):
        """Every other pass, the logits of a linear model are multiplied by -8, else by 10."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 64), requires_grad=False)
            self.factor = 10.0

        def forward(self, x: Tensor) -> Tensor:
            self.factor = 2.0 - self.factor
            s = 0.01 * self.factor * (x.flatten(1) @ self.weight) + 2
            return torch.stack([s, -s], dim=1)

    x = torch.full((1, 1, 8, 8), 0.5)
    zero = torch.zeros(1, dtype=torch.int64)
    expected = x - 0.1 * torch.linspace(-1, 1, 64).sign().view_as(x)
    averaged = APGD(art(Counted(Noisy()), 2), eps=0.1, steps=10, eot=2).search(x, zero, zero)
    torch.testing.assert_close(averaged, expected)
    assert not torch.allclose(APGD(art(Counted(Noisy()), 2), eps=0.1, steps=10).search(x, zero, zero), expected)


def test_arts_preprocessing_holds() -> None:
    net = small_net(channels=3)
    x, _ = images_for(net, 12, channels=3)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.25])[:, None, None]

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net((images - mean) / std)
            return logits

    y = Inside()(x).argmax(1).numpy()
    inside = APGD(art(Inside(), channels=3), norm="l2", eps=0.1, steps=10).generate(x.numpy(), y)
    outside = art(net, channels=3, preprocessing=(mean.numpy(), std.numpy()))
    np.testing.assert_allclose(APGD(outside, norm="l2", eps=0.1, steps=10).generate(x.numpy(), y), inside, atol=1e-5)


def test_few_classes() -> None:
    for classes, setting, message in [
        (3, {"targets": 2}, "targeted DLR loss is not defined for 3 classes: expected at least 4"),
        (2, {"loss": "dlr"}, "the DLR loss is not defined for 2 classes: expected at least 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            APGD(art(small_net(classes), classes), **setting)
    net = small_net(5)
    x, y = images_for(net, 6)
    attack = APGD(art(net, 5), targets=9, eps=0.5, steps=5)
    assert attack.targets == 4
    assert (net(torch.from_numpy(attack.generate(x.numpy(), y.numpy()))).argmax(1) != y).all()


def test_bad_settings() -> None:
    for setting, message in [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"restarts": 0}, "expected restarts >= 1, got 0"),
        ({"eot": 0}, "expected eot >= 1, got 0"),
        ({"targets": -1}, "expected targets >= 0, got -1"),
        ({"norm": "l0"}, "expected norm linf, l2 or l1, got 'l0'"),
        ({"loss": "cw"}, "expected loss ce or dlr, got 'cw'"),
    ]:
        with pytest.raises(ValueError, match=message):
            APGD(art(small_net()), **setting)


@pytest.mark.parametrize("setting", [{"loss": "ce"}, {"loss": "dlr"}, {"targets": 9}])
def test_ties_are_finite(setting: Any) -> None:
    """All logits equal: the prediction is class 0, whatever the attack does."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True).expand(-1, 10) * 0.0

    x = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    attack = APGD(art(Constant()), eps=0.1, steps=4, **setting)
    found = attack.generate(x, np.asarray([0, 1, 0]))
    assert np.isfinite(found).all()
    assert np.abs(found - x).max() <= 0.1 + 1e-6


def test_logits_that_are_not_finite_break() -> None:
    class Overflows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([s, torch.where(s > 32, math.nan, 0 * s)], dim=1)

    counted = Counted(Overflows())
    APGD(art(counted, 2), eps=0.1, steps=10).generate(np.full((4, 1, 8, 8), 0.9, dtype=np.float32), np.zeros(4, int))
    assert counted.forwards == 4


def test_dlr_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0, -2.0], [3.0, 1.0, 0.0, -2.0], [2.0, 2.0, 2.0, 2.0]])
    labels = torch.tensor([0, 1, 0])
    assert dlr(logits, labels).tolist() == pytest.approx([-2 / 3, 2 / 3, 0])
    # -(3 - 0) / (3 - (0 - 2) / 2), -(1 - 3) / 4
    assert targeted_dlr(logits, labels, torch.tensor([2, 0, 1])).tolist() == pytest.approx([-3 / 4, 2 / 4, 0])
    with pytest.raises(ValueError, match="the DLR loss needs at least 3 classes, got 2"):
        dlr(logits[:, :2], labels)
    with pytest.raises(ValueError, match="the targeted DLR loss needs at least 4 classes, got 3"):
        targeted_dlr(logits[:, :3], labels, labels)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("eps", [0.01, 1.0, 12.0, 1e4])
def test_l1_projection_is_the_authors(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 3, 16, 16, generator=generator)
    x[:20] = x[:20].round()  # pixels on the border of [0, 1]
    noise = torch.randn(x.shape, generator=generator)
    sparse = noise.sign() * 0.3 * (torch.rand(x.shape, generator=generator) < 0.05)  # and many of equal size
    for delta in (noise, sparse, 1e-4 * noise, torch.zeros_like(x)):
        found = delta + l1_correction(x, delta, eps)
        torch.testing.assert_close(found, delta + autopgd_base.L1_projection(x, delta, eps), rtol=0, atol=1e-6)
        assert (found.abs().sum(dim=(1, 2, 3)) <= eps * (1 + 1e-9)).all()
        assert ((x + found).clamp(0, 1) - (x + found)).abs().max() < 1e-12
    radii = torch.linspace(0.1, 20, 60)
    each = torch.cat([l1_correction(x[i : i + 1], noise[i : i + 1], float(radii[i])) for i in range(60)])
    torch.testing.assert_close(l1_correction(x, noise, radii), each, rtol=0, atol=1e-12)


def test_last_batch_is_not_a_tiny_one() -> None:
    """Seven ascents in rows for at most six: four and three, not six and one."""
    sizes: list[int] = []
    net = small_net()

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                sizes.append(len(x))
            logits: Tensor = net(x)
            return logits

    x = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    APGD(art(Watched()), eps=0.0, steps=3, batch_size=6).generate(x.numpy(), y.numpy())
    assert sizes == [4] * 3 + [3] * 3


@pytest.mark.parametrize("shift", [0.02, -0.02])
def test_an_ascent_goes_on_until_the_runtime_is_wrong(shift: float) -> None:
    """A twin may differ from the runtime. By a closed form all images can be broken."""
    net, other = TwoClassLinear().requires_grad_(False), TwoClassLinear().requires_grad_(False)
    other.b += shift * other.w.abs().sum()  # moves the twin's boundary by 0.02 in Linf
    runtime, x = as_torch(net), linear_split(20).take(slice(None)) / np.float32(255)
    x = x[net.margins(x, "linf") < 0.029]
    y = runtime.predict(x).argmax(axis=1)
    assert (as_torch(other).predict(x).argmax(axis=1) != y).any()  # at the clean image
    predictor = replace(as_torch(other), predict=runtime.predict, network=None)
    found = APGD(to_estimator(predictor), eps=0.03).generate(x, y)
    assert (runtime.predict(found).argmax(axis=1) != y).all()
