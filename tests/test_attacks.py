"""Every row of ATTACKS on a model whose margins are known; ours against foolbox and the authors' AutoAttack."""

from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from conftest import Victim, randomise_batch_norm
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from victims import TwoClassLinear, as_onnx, as_torch, linear_split

from dgad_tk.common import UserError
from dgad_tk.fold import folded
from dgad_tk.models import build_model
from evaluators import evaluate, plan
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack.reference import AuthorsAutoAttack, ensemble
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.attacks.square import AuthorsSquare
from evaluators.estimators import to_estimator

BAND = 1e-4


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_invariants_of_every_attack(name: str, norm: Any, runtime: str, tmp_path: Path) -> None:
    """Nothing breaks below the margin; Linf budget attacks break everything above it, random search above 1.5 times."""
    module, split = TwoClassLinear(), linear_split(24)
    predictor = as_torch(module) if runtime == "torch" else as_onnx(module, tmp_path)
    images = split.take(slice(None)) / np.float32(255)
    spec = ATTACKS[name]
    eps = float(np.median(module.margins(images, norm)))
    wrong = split.labels.copy()
    wrong[:3] = 1 - wrong[:3]  # the clean model gets these wrong: they are nobody's success
    split = type(split)(split.base, split.index, wrong)

    quick: Any = {"square": {"queries": 500}} if name == "square" else {}
    evaluation = evaluate(predictor, split, plan([name], norm=norm, eps=[eps], settings=quick), batch_size=16)
    unit = evaluation.outcomes[0].unit
    assert unit is not None
    assert unit.attacked.tolist() == [False] * 3 + [True] * 21
    assert not (unit.broken & ~unit.attacked).any()
    assert (unit.adv_pred[unit.broken] == 1 - split.labels[unit.broken]).all()
    judged = unit.linf if evaluation.outcomes[0].row.norm == "linf" else unit.l2
    margins = module.margins(images, evaluation.outcomes[0].row.norm)
    assert (judged[unit.broken] >= margins[unit.broken] * (1 - BAND)).all()
    if spec.kind == "budget":
        assert (judged[unit.attacked] <= eps).all()
        assert not (unit.broken & (margins > eps * (1 + BAND))).any()
        if norm == "linf":
            reach = eps * (1 - BAND) if spec.needs_gradients else eps / 1.5
            assert (unit.attacked & (margins < reach)).any()
            assert unit.broken[unit.attacked & (margins < reach)].all()
    assert unit.forward_passes >= 21
    assert (unit.backward_passes > 0) == spec.needs_gradients


def test_fgsm_and_pgd_equal_foolbox(victim: Victim) -> None:
    net, x, y = victim
    estimator = to_estimator(as_torch(net, (1, 8, 8)))
    # Folded, as ours runs it: the loops are compared, not how rounding grows over ten steps.
    theirs = foolbox.PyTorchModel(folded(net).eval(), bounds=(0, 1))
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    step = ProjectedGradient(estimator, eps=0.1, step_size=0.1, steps=1, init="none").generate(x, y)
    expected, _, _ = foolbox.attacks.LinfFastGradientAttack()(theirs, images, labels, epsilons=0.1)
    np.testing.assert_allclose(step, expected.numpy(), atol=1e-6)

    for norm, attack in (("linf", foolbox.attacks.LinfPGD), ("l2", foolbox.attacks.L2PGD)):
        ours: Any = {"norm": norm, "eps": 0.3, "step_size": 0.05, "steps": 10, "init": "none"}
        found = ProjectedGradient(estimator, **ours, batch_size=20).generate(x, y)
        reference = attack(abs_stepsize=0.05, steps=10, random_start=False)
        expected, _, _ = reference(theirs, images, labels, epsilons=0.3)
        # A gradient that is zero but for rounding may take another sign: a few pixels in ten thousand.
        assert np.isclose(found, expected.numpy(), atol=1e-5).mean() > 0.999


def test_pgd_is_seeded_by_image_not_by_batch(victim: Victim) -> None:
    net, x, y = victim
    estimator = to_estimator(as_torch(net, (1, 8, 8)))
    whole = ProjectedGradient(estimator, eps=0.1, step_size=0.1, steps=1, seed=3).generate(x, y)
    parts = ProjectedGradient(estimator, eps=0.1, step_size=0.1, steps=1, seed=3, batch_size=5)
    np.testing.assert_allclose(parts.generate(x[::-1], y[::-1], index=np.arange(48)[::-1])[::-1], whole, atol=1e-6)
    other = ProjectedGradient(estimator, eps=0.1, step_size=0.1, steps=1, seed=4).generate(x, y)
    assert not np.allclose(other, whole, atol=1e-3)


def test_restarts_never_lose_what_was_broken(victim: Victim) -> None:
    net, x, y = victim
    estimator = to_estimator(as_torch(net, (1, 8, 8)))

    def broken(restarts: int) -> np.ndarray:
        attack = ProjectedGradient(estimator, eps=0.08, step_size=0.02, steps=5, restarts=restarts)
        return np.asarray(estimator.predict(attack.generate(x, y)).argmax(1) != y)

    assert (broken(4) >= broken(1)).all()
    with pytest.raises(ValueError, match="expected restarts >= 1"):
        ProjectedGradient(estimator, restarts=0)


def test_labels_may_be_one_hot_or_absent(victim: Victim) -> None:
    net, x, _ = victim
    estimator = to_estimator(as_torch(net, (1, 8, 8)))
    attack = ProjectedGradient(estimator, eps=0.1, step_size=0.025)
    predicted = estimator.predict(x).argmax(1)
    expected = attack.generate(x, predicted)
    np.testing.assert_array_equal(attack.generate(x, np.eye(10, dtype=np.float32)[predicted]), expected)
    np.testing.assert_array_equal(attack.generate(x), expected)
    np.testing.assert_array_equal(attack.generate(x.astype(np.float64), predicted), expected)


def test_autoattack_is_the_authors() -> None:
    """The same adversarial images as their package called by hand, all four stages at work."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    x = np.random.default_rng(1).random((8, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        y = net(torch.from_numpy(x)).argmax(1).numpy()
    eps = 0.02  # breaks some and not all
    reference = AutoAttack(net, norm="Linf", eps=eps, seed=1, version="standard")
    expected, _ = reference.run_standard_evaluation(torch.from_numpy(x), torch.from_numpy(y), batch_size=8)
    ours = AuthorsAutoAttack(to_estimator(as_torch(net, (1, 8, 8))), eps=eps, seed=1)
    state = torch.random.get_rng_state()
    found = ours.generate(x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(found, expected.numpy())
    changed = (found != x).any(axis=(1, 2, 3))
    assert changed.any()
    assert not changed.all()


def test_square_is_the_authors() -> None:
    """The same images as their class called by hand, on predictions alone."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    x = np.random.default_rng(1).random((8, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        y = net(torch.from_numpy(x)).argmax(1)
        reference = SquareAttack(net, norm="Linf", n_queries=60, eps=0.05, seed=3, device=torch.device("cpu"))
        expected = reference.perturb(torch.from_numpy(x), y).numpy()
    state = torch.random.get_rng_state()
    found = AuthorsSquare(to_estimator(as_torch(net, (1, 8, 8))), eps=0.05, queries=60, seed=3).generate(x, y.numpy())
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(found, expected)
    assert (found != x).any()


def test_autoattack_with_few_classes() -> None:
    assert ensemble(10) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert ensemble(3) == ("apgd-ce", "fab-t", "square")
    assert ensemble(10, "l2", 4) == ("apgd-ce", "apgd-t", "fab-t")


def test_autoattack_says_what_its_authors_doubt(tmp_path: Path) -> None:
    class Probabilities(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = randomise_batch_norm(build_model("resnet8", in_channels=1, classes=10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.net(x), 1)

    x = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    attack = AuthorsAutoAttack(to_estimator(as_torch(Probabilities(), (1, 8, 8))), eps=0.01)
    attack.generate(x, np.zeros(4, dtype=np.int64))
    assert any("probability distribution" in text for text in attack.warnings)
    assert not any("See" in text for text in attack.warnings)


def test_bad_parameters() -> None:
    for setting, message in [
        ({"pgd": {"step": 5}}, "attack 'pgd' has no parameter 'step' .did you mean 'steps'"),
        ({"pgd": {"steps": 0}}, "pgd.steps must be a whole number of at least 1, got 0"),
        ({"pgd": {"steps": "ten"}}, "pgd.steps must be a whole number of at least 1, got 'ten'"),
        ({"pgd": {"relative_step": -0.1}}, "pgd.relative_step must be a number of at least 0, got -0.1"),
        ({"pgd": {"relative_step": float("nan")}}, "pgd.relative_step must be a number of at least 0, got nan"),
    ]:
        with pytest.raises(UserError, match=message):
            plan(["pgd"], norm="linf", eps=[0.1], settings=setting)
