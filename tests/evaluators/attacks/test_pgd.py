"""PGD's relatives against ART and foolbox: momentum, targets, losses, restarts."""

from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from art.attacks.evasion import MomentumIterativeMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from shared import Victim
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from dgad_tk.ascent.folded import folded
from dgad_tk.ascent.losses import kl
from dgad_tk.common import UserError
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.target.estimators import PredictorClassifier, to_estimator

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def smooth() -> tuple[PredictorClassifier, np.ndarray, np.ndarray]:
    """A network without kinks, where rounding does not grow over the steps, images and their predictions.

    The images stay away from 0 and 1, where it would matter whether one clips or projects first.
    """
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    x = np.random.default_rng(2).uniform(0.3, 0.7, (48, 1, 8, 8)).astype(np.float32)
    estimator = to_estimator(as_torch(net.eval(), (1, 8, 8)))
    return estimator, x, estimator.predict(x).argmax(1)


def alike(found: np.ndarray, expected: np.ndarray) -> bool:
    """All but a few pixels in ten thousand: a gradient that is zero but for rounding may take another sign."""
    return bool(np.isclose(found, expected, atol=1e-5).mean() > 0.999)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.25)])
def test_momentum_and_targets_equal_arts(
    smooth: tuple[PredictorClassifier, np.ndarray, np.ndarray],
    norm: Any,
    eps: float,
    momentum: float,
    targeted: bool,
) -> None:
    estimator, x, predicted = smooth
    y = (predicted + 3) % 10 if targeted else predicted
    ours: Any = {"norm": norm, "eps": eps, "step_size": eps / 4, "steps": 6, "init": "none"}
    found = ProjectedGradient(estimator, **ours, momentum=momentum, targeted=targeted).generate(x, y)
    theirs: Any = {"norm": {"linf": np.inf, "l2": 2}[norm], "eps": eps, "eps_step": eps / 4, "max_iter": 6}
    theirs |= {"targeted": targeted, "batch_size": 64, "verbose": False}
    if momentum:
        expected = MomentumIterativeMethod(estimator, decay=momentum, **theirs).generate(x, y)
    else:
        expected = ProjectedGradientDescent(estimator, **theirs).generate(x, y)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if momentum:
        plain = ProjectedGradient(estimator, **ours, targeted=targeted).generate(x, y)
        assert not alike(found, plain)


@pytest.mark.parametrize(("norm", "attack"), [("linf", foolbox.attacks.LinfPGD), ("l2", foolbox.attacks.L2PGD)])
def test_targets_equal_foolbox(victim: Victim, norm: Any, attack: Any) -> None:
    """On images that touch 0 and 1, too."""
    net, x, y = victim
    targets, eps = (y + 1) % 10, {"linf": 0.15, "l2": 1.0}[norm]
    estimator = to_estimator(as_torch(net, (1, 8, 8)))
    ours = ProjectedGradient(
        estimator, norm=norm, eps=eps, step_size=eps / 4, steps=5, init="none", targeted=True
    ).generate(x, targets)
    criterion = foolbox.criteria.TargetedMisclassification(torch.from_numpy(targets))
    theirs = foolbox.PyTorchModel(folded(net).eval(), bounds=(0, 1))
    reference = attack(abs_stepsize=eps / 4, steps=5, random_start=False)
    expected, _, _ = reference(theirs, torch.from_numpy(x), criterion, epsilons=eps)
    assert alike(ours, expected.numpy())
    assert (estimator.predict(ours).argmax(1) == targets).mean() > (estimator.predict(x).argmax(1) == targets).mean()
    with pytest.raises(ValueError, match="needs the classes to reach"):
        ProjectedGradient(estimator, targeted=True).generate(x)


def test_mim_is_foolboxs_where_norms_agree() -> None:
    """On a linear model all gradients are parallel, so that normalising them before adding changes nothing."""
    module, split = TwoClassLinear(), linear_split(16)
    x = split.take(slice(None)) / np.float32(255)
    found = ProjectedGradient(
        to_estimator(as_torch(module)), eps=0.05, step_size=0.01, steps=4, init="none", momentum=1.0
    ).generate(x, split.labels)
    attack = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(momentum=1.0, abs_stepsize=0.01, steps=4)
    theirs = foolbox.PyTorchModel(module.eval(), bounds=(0, 1))
    expected, _, _ = attack(theirs, torch.from_numpy(x), torch.from_numpy(split.labels), epsilons=0.05)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_l1_equals_foolboxs_sparse_descent() -> None:
    """Inside the ball, some pixels at 0 and 1: of the way back into it, see `l1_correction`."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(432, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        )
    x = np.random.default_rng(2).uniform(0, 1, (48, 3, 12, 12)).astype(np.float32)
    estimator = to_estimator(as_torch(net.eval(), (3, 12, 12)))
    y = estimator.predict(x).argmax(1)
    found = ProjectedGradient(estimator, norm="l1", eps=9.0, step_size=1.0, steps=8, init="none").generate(x, y)
    attack = foolbox.attacks.SparseL1DescentAttack(abs_stepsize=1.0, steps=8)
    theirs = foolbox.PyTorchModel(net, bounds=(0, 1))
    expected, _, _ = attack(theirs, torch.from_numpy(x), torch.from_numpy(y), epsilons=9.0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    changed = (found != x).sum(axis=(1, 2, 3))
    assert 5 < changed.min() <= changed.max() <= 40


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("room", [0.5, 0.02])
def test_l1_breaks_a_linear_model_beyond_its_margin(momentum: float, room: float) -> None:
    """The nearest image of the other class changes the heaviest pixels, each as far as 0 and 1 let it.

    A fixed step goes to and fro about the best image, at a distance that is a share of the step.
    """
    module = TwoClassLinear()
    w = module.w.detach().double().numpy()
    target = np.where(w > 0, room, 1 - room).astype(np.float32)  # a step against s moves each by at most `room`
    x = target.reshape(1, *SHAPE)
    order = np.argsort(-np.abs(w))
    with torch.no_grad():
        module.b.copy_(torch.tensor(0.3 - float(target @ w)))
    gains = np.cumsum(np.abs(w)[order] * room)
    full = int(np.searchsorted(gains, 0.3))
    margin = full * room + (0.3 - (gains[full - 1] if full else 0.0)) / abs(w[order[full]])
    estimator = to_estimator(as_torch(module))
    y = estimator.predict(x).argmax(1)
    for share, broken in ((0.999, False), (1.02, True)):
        settings: Any = {"eps": margin * share, "step_size": margin / 200, "steps": 400, "init": "none"}
        found = ProjectedGradient(estimator, norm="l1", momentum=momentum, **settings).generate(x, y)
        assert np.abs(found.astype(np.float64) - x).sum() <= margin * share * (1 + 1e-6)
        assert (estimator.predict(found).argmax(1) != y).all() == broken


@pytest.mark.parametrize("loss", ["ce", "dlr", "cw", "kl"])
def test_one_step_follows_the_losses_own_gradient(victim: Victim, loss: Any) -> None:
    """The sign of the loss's gradient by torch, the losses written out again."""
    net, x, y = victim
    clean, labels = net(torch.from_numpy(x)).detach(), torch.from_numpy(y)
    attack = ProjectedGradient(
        to_estimator(as_torch(net, (1, 8, 8))), eps=0.05, step_size=0.01, steps=1, loss=loss, init="uniform", seed=3
    )
    index = torch.arange(len(x))
    start = (torch.from_numpy(x) + 0.05 * (2 * attack.draws.uniform("pgd", (1, 8, 8), index=index) - 1)).clamp(0, 1)
    logits = net(start.requires_grad_())
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.masked_fill(torch.nn.functional.one_hot(labels, 10).bool(), -torch.inf).amax(1)
    ordered = logits.sort(dim=1).values
    value = {
        "ce": torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
        "cw": other - own,
        "dlr": (other - own) / (ordered[:, -1] - ordered[:, -3]),
        "kl": torch.nn.functional.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="none").sum(1),
    }[loss]
    (gradient,) = torch.autograd.grad(value.sum(), start)
    expected = start.detach() + 0.01 * gradient.sign()
    expected = torch.minimum(torch.maximum(expected, torch.from_numpy(x) - 0.05), torch.from_numpy(x) + 0.05)
    assert alike(attack.generate(x, y), expected.clamp(0, 1).numpy())


@pytest.mark.parametrize("loss", ["ce", "dlr", "cw", "kl"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 0.8), ("l1", 4.0)])
def test_every_loss_breaks_images_in_the_ball(victim: Victim, loss: Any, norm: Any, eps: float) -> None:
    net, x, y = victim
    estimator = to_estimator(as_torch(net, (1, 8, 8)))
    before = (estimator.predict(x).argmax(1) != y).mean()
    found = ProjectedGradient(estimator, norm=norm, eps=eps, step_size=eps / 4, loss=loss).generate(x, y)
    gap = (found.astype(np.float64) - x).reshape(len(x), -1)
    size = np.linalg.norm(gap, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert (size <= eps + 1e-6 * max(eps, 1)).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (estimator.predict(found).argmax(1) != y).mean() >= before + 0.25


def test_dlr_needs_three_classes() -> None:
    with pytest.raises(UserError, match="the loss 'dlr' needs at least 3 classes, the model has 2"):
        ProjectedGradient(to_estimator(as_torch(TwoClassLinear())), loss="dlr")


def test_what_a_restart_has_broken_is_left_alone(victim: Victim) -> None:
    net, x, y = victim
    estimator = to_estimator(as_torch(net, (1, 8, 8)))
    settings: Any = {"eps": 0.08, "step_size": 0.02, "steps": 4}
    once = ProjectedGradient(estimator, **settings).generate(x, y)
    thrice = ProjectedGradient(estimator, **settings, restarts=3).generate(x, y)
    broken = estimator.predict(once).argmax(1) != y
    assert broken.any()
    assert not broken.all()
    np.testing.assert_array_equal(thrice[broken], once[broken])
    assert (thrice[~broken] != once[~broken]).any(axis=(1, 2, 3)).all()


def test_any_pytorch_classifier_with_its_preprocessing(victim: Victim) -> None:
    """ART's own estimator with a mean and a deviation is the model of shifted images."""
    net, x, y = victim

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net((x - 0.1) / 0.9)
            return logits

    loss = torch.nn.CrossEntropyLoss()
    theirs = PyTorchClassifier(net, loss, (1, 8, 8), 10, clip_values=(0, 1), preprocessing=(0.1, 0.9))
    settings: Any = {"eps": 0.1, "step_size": 0.025, "steps": 3, "momentum": 1.0}
    found = ProjectedGradient(theirs, **settings).generate(x, y)
    assert alike(found, ProjectedGradient(to_estimator(as_torch(Shifted(), (1, 8, 8))), **settings).generate(x, y))


def test_bad_settings(victim: Victim) -> None:
    estimator = to_estimator(as_torch(victim[0], (1, 8, 8)))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"loss": "hinge"}, "expected a loss of ce, dlr, cw, kl, got 'hinge'"),
        ({"momentum": -0.5}, "expected momentum >= 0, got -0.5"),
        ({"restarts": 0}, "expected restarts >= 1, got 0"),
        ({"steps": 0}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"norm": "l3"}, "norm"),
        ({"loss": "kl", "init": "none"}, "at the clean image its gradient is 0"),
        ({"loss": "kl", "targeted": True}, "knows no target"),
    ]
    for settings, message in bad:
        with pytest.raises(ValueError, match=message):
            ProjectedGradient(estimator, **settings)


def test_kl_has_no_slope_where_it_starts(victim: Victim) -> None:
    """Why `kl` refuses to start at the image itself."""
    net, x, _ = victim
    images = torch.from_numpy(x).requires_grad_()
    logits = net(images)
    (gradient,) = torch.autograd.grad(kl(logits.detach(), logits).sum(), images)
    assert gradient.abs().max() < 1e-5
