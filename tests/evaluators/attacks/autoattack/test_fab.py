"""FAB against its authors' code, iterate by iterate, and its projections against scipy's solvers."""

from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from pyautoattack import fab_projections as theirs
from pyautoattack.fab_pt import FABAttack_PT
from scipy.optimize import linprog, minimize
from shared import Victim
from torch import Tensor, nn
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from dgad_tk.ascent.losses import margin
from evaluators.attacks.autoattack.fab import projections
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.fab.projections import Hyperplane, length
from evaluators.target.estimators import Counted, to_estimator

pytestmark = pytest.mark.portable

NORMS: dict[Any, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
IMAGE = (3, 5, 5)
FAR_TOO_SMALL = 1e-6
"""An eps that no attack succeeds at, so that every job runs to its end."""


class Watched(nn.Module):
    """A small smooth network that remembers what it was asked."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(0.3 * torch.randn(40, 75, generator=generator))
        self.second = nn.Parameter(0.3 * torch.randn(classes, 40, generator=generator))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone(memory_format=torch.contiguous_format))
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T) @ self.second.T


class Injected:
    """A stream of a test's own in place of the counter-based one: `noise[i]` for image i, whatever it is asked for."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def uniform(self, purpose: str, shape: tuple[int, ...], *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        assert self.noise.shape[1:] == shape
        return self.noise[index].clone()

    normal = uniform

    def integers(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("FAB draws no integers")


def images(n: int = 16) -> Tensor:
    """Half of them with pixels at 0 and 1."""
    x = torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(1))
    x[::2] = ((x[::2] - 0.5) * 3 + 0.5).clamp(0, 1)
    return x


def plain(net: nn.Module, shape: tuple[int, ...] = IMAGE, **more: Any) -> PyTorchClassifier:
    with torch.no_grad():
        classes = net(torch.zeros(1, *shape)).shape[1]
    return PyTorchClassifier(net, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, **more)


def authors(net: nn.Module, norm: str, **more: Any) -> FABAttack_PT:
    return FABAttack_PT(net, norm=NORMS[norm], device=torch.device("cpu"), **more)


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("norm", NORMS)
def test_iterates_are_the_authors(norm: Any, targets: int) -> None:
    """From the image and from a random start, the points that the network is asked for agree one by one.

    As long as an image's verdicts are clear: a step from a point on the boundary ends on either side by rounding alone.
    """
    net, x = Watched(), images()
    y = net(x).argmax(1)
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]
    reference = authors(net, norm, eps=eps, n_iter=12)
    reference.target_class = 2
    runs, asked = [], []
    with torch.no_grad():
        for again in (False, True):
            torch.manual_seed(5)
            net.asked.clear()
            runs.append(reference.attack_single_run(x, y, use_rand_start=again, is_targeted=bool(targets)))
            asked.append(net.asked[1 + targets :])  # they ask for the clean images once more for the targets
    torch.manual_seed(5)
    noise = torch.rand(x.shape) if norm == "linf" else torch.randn(x.shape)

    attack = FAB(plain(net), norm=norm, eps=eps, targets=targets, steps=12, restarts=2, minimal=True)
    attack.draws = Injected(noise)
    ours: list[Tensor] = []
    module: Any = attack.victim.module
    module.register_forward_pre_hook(lambda _, args: ours.append(args[0].detach().clone()))
    found = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    assert len(ours) == 1 + 24
    clear = torch.ones(2 * len(x), dtype=torch.bool)
    for mine, *others in zip(ours[1:], *asked, strict=True):
        expected = torch.cat(others)
        torch.testing.assert_close(mine[clear].contiguous(), expected[clear], atol=1e-5, rtol=0)
        clear &= margin(net(expected), torch.cat([y, y])).abs() > 1e-5
    assert clear.float().mean() > 0.75

    assert all((run != x).flatten(1).any(1).all() for run in runs)
    first, second = (length((run - x).flatten(1), norm) for run in runs)
    nearer = torch.where((second < first)[:, None, None, None], runs[1], runs[0])
    # Where both runs end equally near, rounding decides which is taken.
    settled = clear[: len(x)] & clear[len(x) :] & ((second - first).abs() > 1e-5)
    assert settled.any()
    torch.testing.assert_close(found[settled], nearer[settled], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6), ("l1", 2.0)])
def test_outcomes_are_the_authors(victim: Victim, norm: Any, eps: float) -> None:
    """The same images of a trained network are broken, at any batch size, and all of them inside the ball."""
    net, x, y = victim
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    reference = authors(net, norm, eps=eps, n_iter=15, targeted=True, n_target_classes=3)
    expected = (reference.perturb(images, labels) != images).flatten(1).any(1)
    with torch.no_grad():
        expected |= net(images).argmax(1) != labels
    assert 0.1 < expected.float().mean() < 0.9
    for batch_size in (250, 11):
        attack = FAB(
            to_estimator(as_torch(net, (1, 8, 8))), norm=norm, eps=eps, targets=3, steps=15, batch_size=batch_size
        )
        found = torch.from_numpy(attack.generate(x, y))
        assert found.min() >= 0
        assert found.max() <= 1
        with torch.no_grad():
            wrong = net(found).argmax(1) != labels
        broken = wrong & (length((found - images).flatten(1), norm) <= eps)
        assert broken.tolist() == expected.tolist()
        assert wrong.sum() > broken.sum()  # those that are not broken come back as the nearest point beyond eps


def test_counts_of_passes(victim: Victim) -> None:
    """One forward pass an image, then two and one backward a step and target; less where an image leaves."""
    net, x, y = victim[0], victim[1][:20], victim[2][:20]
    with torch.no_grad():
        right = net(torch.from_numpy(x)).argmax(1).numpy() == y

    def passes(**options: Any) -> tuple[int, int]:
        counted = Counted(net)
        FAB(to_estimator(as_torch(net, (1, 8, 8)), module=counted), steps=5, batch_size=7, **options).generate(x, y)
        return counted.forwards, counted.backwards

    jobs = 3 * int(right.sum())
    assert passes(eps=FAR_TOO_SMALL, targets=3) == (len(x) + 10 * jobs, 5 * jobs)
    assert passes(eps=0.3, targets=3, minimal=True) == (len(x) + 10 * jobs, 5 * jobs)
    forwards, backwards = passes(eps=0.1, targets=3)
    assert len(x) < forwards < len(x) + 10 * jobs
    assert backwards < 5 * jobs
    assert passes(eps=FAR_TOO_SMALL, restarts=2) == (len(x) + 20 * int(right.sum()), 9 * 10 * int(right.sum()))


@pytest.mark.parametrize("targets", [0, 9])
@pytest.mark.parametrize("norm", NORMS)
def test_nearest_point_of_a_linear_model(norm: Any, targets: int) -> None:
    """Within 2 % of the true distance and never below it; two classes have one target."""
    net, split = TwoClassLinear().requires_grad_(False), linear_split(6)
    x = split.take(slice(None)) / np.float32(255)
    w, b = net.w.double().numpy(), float(net.b)
    room = {"linf": 0.1, "l2": 0.1, "l1": 0.3}[norm]
    attack = FAB(plain(net, SHAPE), norm=norm, eps=room, targets=targets, steps=40, minimal=True)
    found = attack.generate(x, split.labels)
    assert bool(attack.warnings) == (targets == 9)
    assert (net(torch.from_numpy(found)).argmax(1).numpy() != split.labels).all()
    distance = length(torch.from_numpy(found.astype(np.float64) - x).flatten(1), norm).numpy()
    true = [nearest(pixels, w, w @ pixels + b, norm) for pixels in x.reshape(len(x), -1).astype(np.float64)]
    assert (distance >= np.array(true) * (1 - 1e-5)).all()
    assert (distance <= np.array(true) * 1.02).all()


def nearest(t: np.ndarray, w: np.ndarray, gap: float, norm: str) -> float:
    """Distance from t in the box to {<w, z> = <w, t> - gap} inside the box, by scipy."""
    if norm == "l2":
        start = np.zeros_like(t)
        found = minimize(
            lambda d: (d @ d, 2 * d),
            start,
            jac=True,
            method="SLSQP",
            bounds=list(zip(-t, 1 - t, strict=True)),
            constraints={"type": "eq", "fun": lambda d: w @ d + gap, "jac": lambda d: w},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success, found.message
        return float(np.sqrt(found.fun))
    size = len(t)  # d = up - down; Linf has one more variable that bounds them all
    bounds = [(0.0, 1 - each) for each in t] + [(0.0, each) for each in t]
    normal = np.concatenate([w, -w])
    if norm == "l1":
        found = linprog(np.ones(2 * size), A_eq=normal[None], b_eq=[-gap], bounds=bounds)
    else:
        found = linprog(
            np.append(np.zeros(2 * size), 1.0),
            A_ub=np.hstack([np.eye(2 * size), -np.ones((2 * size, 1))]),
            b_ub=np.zeros(2 * size),
            A_eq=np.append(normal, 0.0)[None],
            b_eq=[-gap],
            bounds=[*bounds, (0.0, None)],
        )
    assert found.status == 0, found.message
    return float(found.fun)


def instances(kind: str, dimensions: int, n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Points in the box, normals, and gaps of about half of what the box allows, to both sides."""
    generator = torch.Generator().manual_seed(dimensions)
    t = torch.rand(n, dimensions, generator=generator)
    w = torch.randn(n, dimensions, generator=generator)
    if kind == "at the edges":
        t = ((t - 0.5) * 4 + 0.5).clamp(0, 1)
    if kind == "ties":
        w = torch.sign(w)
    if kind == "zeros":
        w[:, ::3] = 0
    if kind == "uneven":
        w *= 10 ** (3 * torch.rand(w.shape, generator=generator) - 2)
    down, up = (
        (w.clamp(min=0) * t - w.clamp(max=0) * (1 - t)).sum(1),
        (w.clamp(min=0) * (1 - t) - w.clamp(max=0) * t).sum(1),
    )
    share = 0.05 + 0.9 * torch.rand(n, generator=generator)
    return t, w, torch.where(torch.arange(n) % 2 == 0, share * down, -share * up)


@pytest.mark.parametrize("kind", ["plain", "at the edges", "ties", "zeros", "uneven"])
@pytest.mark.parametrize("norm", NORMS)
def test_projections_are_as_near_as_scipys(norm: Any, kind: str) -> None:
    t, w, gap = instances(kind, 14)
    step, size = Hyperplane(w, norm).step(t, gap)
    torch.testing.assert_close((w * step).sum(1), -gap, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(size, length(step, norm))
    assert (t + step).min() >= -1e-7
    assert (t + step).max() <= 1 + 1e-7
    true = [nearest(*(each[row].double().numpy() for each in (t, w, gap)), norm) for row in range(len(t))]
    np.testing.assert_allclose(size.numpy(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("dimensions", [75, 3072])
@pytest.mark.parametrize("norm", NORMS)
def test_projections_are_the_authors(norm: Any, dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, as L1 spends what is left on one pixel, and the rounding of a sum of thousands with it."""
    monkeypatch.setattr(projections, "_ROUNDING", 1e-13)  # where the climb ends
    for kind in ("plain", "at the edges", "zeros", "uneven"):
        t, w, gap = instances(kind, dimensions)
        for wanted in (gap, gap / 100, gap * 1000):  # the last one is out of the box's reach
            step, size = Hyperplane(w, norm).step(t, wanted)
            expected = getattr(theirs, f"projection_{norm}")(t, w, (w * t).sum(1) - wanted)
            torch.testing.assert_close(size, length(expected, norm), atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(step, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_of_the_degenerate(norm: Any) -> None:
    t = torch.tensor([[0.0, 1.0, 0.5, 0.25]]).repeat(7, 1)
    w = torch.tensor(
        [[0.0] * 4, [1.0, -1.0, 1.0, 1.0], [1e-30] * 4, [1e12] * 4, [1.0, 0.0, 0.0, 0.0], [1.0] * 4, [1.0] * 4]
    )
    gap = torch.tensor([3.0, 1e30, 1.0, -1e12, 1.0, 0.0, -1e-20])
    step, size = Hyperplane(w, norm).step(t, gap)
    assert torch.isfinite(step).all()
    assert torch.isfinite(size).all()
    assert ((t + step >= 0) & (t + step <= 1)).all()
    assert (step[0] == 0).all()
    assert (t + step)[1].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert (step[4] == 0).all()  # the only pixel with a weight is at its edge already
    assert (step[5] == 0).all()
    assert float(w[3] @ step[3]) == pytest.approx(1e12)


@pytest.mark.parametrize("targets", [0, 9])
@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradients_ties_and_nonsense_do_no_harm(norm: Any, targets: int) -> None:
    class Flat(nn.Module):
        """Logits that do not depend on the image; all equal, so that the first class is predicted."""

        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :4]

    class Spiked(nn.Module):
        """A gradient that is infinite at 0, where half of the pixels are."""

        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).sqrt().sum(1)
            return torch.stack([30 - s, s - 30, s - 40], dim=1)

    x = images(6).numpy()
    options: Any = {"norm": norm, "targets": targets, "steps": 4, "restarts": 2}
    np.testing.assert_array_equal(FAB(plain(Flat()), **options).generate(x, np.zeros(6, dtype=np.int64)), x)
    x[:, 0, 0] = 0
    assert np.isfinite(FAB(plain(Spiked()), eps=1.0, **options).generate(x)).all()


def test_what_is_not_finite_counts_as_wrong() -> None:
    class Overflows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([2 - s / s.lt(1.5), s], dim=1)  # class 0 below a sum of 1, no number from 1.5

    x = np.full((2, 1, 2, 2), 0.1, dtype=np.float32)
    found = FAB(plain(Overflows(), (1, 2, 2)), eps=0.3, targets=9).generate(x, np.zeros(2, dtype=np.int64))
    assert (found.sum(axis=(1, 2, 3)) >= 1).all()


def test_any_classifier_of_art(victim: Victim) -> None:
    """A plain estimator whose images are standardised on the way in, and one-hot labels."""
    net, x, y = victim
    estimator = plain(net, (1, 8, 8), preprocessing=(0.1, 0.9), clip_values=(0, 1))
    right = estimator.predict(x).argmax(1) == y
    found = FAB(estimator, eps=0.15, targets=2, steps=10).generate(x, np.eye(10, dtype=np.float32)[y])
    np.testing.assert_array_equal(found[~right], x[~right])
    wrong = estimator.predict(found).argmax(1) != y
    assert wrong[right].mean() > 0.5
    assert (np.abs(found - x).max(axis=(1, 2, 3)) <= 0.15 + 1e-6)[wrong].mean() > 0.5


def test_few_classes() -> None:
    for classes, warned in ((10, False), (3, True), (2, True)):
        net = Watched(classes)
        attack = FAB(plain(net), eps=FAR_TOO_SMALL, targets=9, steps=2)
        attack.generate(images(4).numpy())
        assert [f"there are only {classes} classes" in text for text in attack.warnings] == [True] * warned


def test_bad_parameters() -> None:
    estimator = plain(Watched())
    for options, message in (
        ({"norm": "l3"}, "expected norm linf, l2 or l1, got 'l3'"),
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"targets": -1}, "expected targets >= 0, got -1"),
        ({"restarts": 0}, "expected restarts >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FAB(estimator, **options)
