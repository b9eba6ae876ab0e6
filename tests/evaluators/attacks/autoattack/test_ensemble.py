"""The ensemble against its authors' package, and its bookkeeping."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from pyautoattack import AutoAttack as Package
from torch import Tensor, nn
from victims import as_onnx, as_torch, one_convolution

from dgad_tk.config.threat import Norm
from dgad_tk.data import Split, load_dataset
from evaluators.attacks import ATTACKS
from evaluators.attacks.array_file import ArrayFile
from evaluators.attacks.autoattack import ensemble as ensemble_module
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.stages import ROBUST, ensemble
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.target.ball import linf
from evaluators.target.estimators import Counted, to_estimator

AUTHORS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS: dict[Norm, float] = {"linf": 0.09, "l2": 0.55, "l1": 1.9}
"""At which about half of the images of `small` withstand."""
QUERIES = 100

Small = tuple[nn.Module, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def small() -> Small:
    """One convolution, trained for a moment on digits; 24 images that it gets right, and their labels."""
    net, test = one_convolution(), load_dataset("digits").test
    images, labels = test.take(slice(0, 40)) / np.float32(255), test.labels[:40]
    with torch.no_grad():
        right = np.flatnonzero(net(torch.from_numpy(images)).argmax(dim=1).numpy() == labels)[:24]
    return net, images[right], labels[right]


def names(*arguments: Any, **settings: Any) -> list[str]:
    return [stage.name for stage in ensemble(*arguments, **settings)[0]]


def plain(net: nn.Module, classes: int = 10, shape: tuple[int, ...] = (1, 8, 8), **more: Any) -> PyTorchClassifier:
    loss = nn.CrossEntropyLoss()
    return PyTorchClassifier(net, loss=loss, input_shape=shape, nb_classes=classes, clip_values=(0.0, 1.0), **more)


def held(attack: AutoAttack, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the estimator is right on what the attack has made."""
    return np.asarray(attack.estimator.predict(attack.generate(x, y)).argmax(axis=1) == y)


class Unbreakable(nn.Module):
    """Right whatever comes, with gradients: the label's logit is ahead by more than any image can change."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(classes, 64, generator=torch.Generator().manual_seed(1)))
        self.ahead = nn.Parameter(torch.eye(classes)[0] * 50)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)) @ self.weight.T + self.ahead


Authors = Callable[[Norm], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def authors(small: Small) -> Authors:
    """Adversarial images and predictions of their package, called by hand, in a norm."""
    net, x, y = small

    @cache
    def run(norm: Norm) -> tuple[np.ndarray, np.ndarray]:
        package = Package(net, norm=AUTHORS[norm], eps=EPS[norm], seed=1, version="standard")  # type: ignore[arg-type]
        package.square.n_queries, package.verbose = QUERIES, False
        found = package.run_standard_evaluation(torch.from_numpy(x), torch.from_numpy(y), batch_size=len(x))
        return found[0].numpy(), found[1].numpy()

    return run


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_as_robust_as_by_the_authors(norm: Norm, small: Small, authors: Authors) -> None:
    """Image by image; draws differ, so that an image next to the boundary may fall to one of the two alone."""
    net, x, y = small
    theirs = authors(norm)[1] == y
    ours = held(AutoAttack(plain(net), norm=norm, eps=EPS[norm], queries=QUERIES), x, y)
    assert 0 < theirs.sum() < len(x)
    assert (ours != theirs).sum() <= 1


def test_plus_as_the_authors(small: Small) -> None:
    net, x, y = small
    x, y = x[:8], y[:8]
    reference = Package(net, norm="Linf", eps=EPS["linf"], seed=0, version="plus")
    reference.square.n_queries, reference.verbose = QUERIES, False
    _, predicted = reference.run_standard_evaluation(torch.from_numpy(x), torch.from_numpy(y), batch_size=8)
    attack = AutoAttack(plain(net), eps=EPS["linf"], version="plus", queries=QUERIES)
    assert (held(attack, x, y) != (predicted.numpy() == y)).sum() <= 1
    assert [stage.name for stage in attack.stages] == reference.attacks_to_run


def test_rand_averages_gradients_of_a_random_model(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = small
    asked = Counted(net)

    def noisy(images: Tensor) -> Tensor:
        return Counted.forward(asked, images + 0.02 * torch.randn_like(images))

    module = Counted(net)
    module.forward = noisy  # type: ignore[method-assign]
    monkeypatch.setattr(ensemble_module, "APGD", partial(ensemble_module.APGD, steps=8))
    attack = AutoAttack(plain(module), eps=EPS["linf"], version="rand")
    found = attack.run(x[:6], y[:6])
    assert found.stages == ["apgd-ce", "apgd-dlr"]
    assert linf(found.adversarials, x[:6]).max() <= EPS["linf"]
    # 20 passes for each gradient of each image that is left, and none for the last point but one.
    assert asked.backwards % 20 == 0
    assert asked.backwards >= 20 * 8 * (found.broken_by == ROBUST).sum()


def test_stages_of_every_version() -> None:
    standard = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names("standard", classes=10, norm="linf", side=32) == standard
    assert names("plus", classes=10, norm="linf", side=32) == Package(nn.Identity(), version="plus").attacks_to_run
    assert names("rand", classes=10, norm="linf", side=32) == Package(nn.Identity(), version="rand").attacks_to_run
    for norm, restarts, targets in (("linf", 1, 9), ("l2", 1, 9), ("l1", 5, 5)):
        stages, notes = ensemble("standard", classes=10, norm=norm, side=32)  # type: ignore[arg-type]
        authors = Package(nn.Identity(), norm=AUTHORS[norm], version="standard")  # type: ignore[arg-type]
        assert (authors.apgd.n_restarts, authors.apgd_targeted.n_target_classes) == (restarts, targets)
        assert (stages[0].restarts, stages[1].targets, stages[2].targets) == (restarts, targets, 9)
        assert notes == []
    stages, notes = ensemble("standard", classes=6, norm="linf", side=32)
    assert ([stage.name for stage in stages], [stage.targets for stage in stages]) == (standard, [0, 5, 5, 0])
    assert notes == ["5 targets in place of 9: the model has 6 classes"]
    assert names("standard", classes=3, norm="linf", side=32) == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    assert names("plus", classes=3, norm="linf", side=32) == ["apgd-ce", "apgd-dlr", "fab", "square", "fab-t"]
    stages, notes = ensemble("standard", classes=2, norm="linf", side=32)
    assert [(stage.name, stage.restarts) for stage in stages] == [("apgd-ce", 5), ("fab-t", 1), ("square", 1)]
    assert any("DLR needs 3 classes" in note for note in notes)
    assert names("rand", classes=2, norm="linf", side=32) == ["apgd-ce"]
    assert names("standard", classes=10, norm="l2", side=4) == ["apgd-ce", "apgd-t", "fab-t"]
    assert names("standard", classes=10, norm="linf", side=4) == standard


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes(classes: int) -> None:
    """It runs, says what it is not, says it once, and breaks what it should: a linear model at its margin."""
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)
    net[1].weight.data = torch.randn(classes, 64, generator=generator)
    net[1].bias.data = -0.5 * net[1].weight.sum(dim=1)
    x = torch.rand(12, 1, 8, 8, generator=generator).mul(0.4).add(0.3)
    logits, rows = net(x), net[1].weight
    y = logits.argmax(dim=1)
    gaps = logits.gather(1, y[:, None]) - logits
    margins = (gaps / (rows[None] - rows[y][:, None]).abs().sum(dim=2)).nan_to_num(torch.inf).amin(dim=1).numpy()
    eps = float(np.median(margins))
    attack = AutoAttack(plain(net, classes), eps=eps, queries=QUERIES)
    for _ in range(2):
        robust = held(attack, x.numpy(), y.numpy())
        assert robust[margins > eps * (1 + 1e-4)].all()
        assert not robust[margins < eps * (1 - 1e-4)].any()
        assert len(set(attack.warnings)) == len(attack.warnings)
        whole = classes >= 4
        assert any("not the whole ensemble" in text for text in attack.warnings) != whole
        assert any(f"the model has {classes} classes" in text for text in attack.warnings)


def test_warnings_of_a_stage_are_told_once(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = small

    class Doubtful(ensemble_module.APGD):
        def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
            self.warnings.append("a doubt")
            return x

    monkeypatch.setattr(ensemble_module, "APGD", Doubtful)
    attack = AutoAttack(plain(net), eps=0.01, version="rand")
    attack.generate(x[:4], y[:4])
    assert attack.warnings == ["a doubt"]


def test_ties_divide_by_nothing() -> None:
    """Equal logits: the first class is the prediction, and no step is NaN."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    net[1].weight.data.zero_()
    net[1].bias.data.zero_()
    x = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    y = np.array([0, 0, 3, 0])
    for norm in EPS:
        for version in ("standard", "plus"):
            attack = AutoAttack(plain(net), norm=norm, eps=0.1, version=version, queries=20)  # type: ignore[arg-type]
            found = attack.run(x, y)
            assert np.isfinite(found.adversarials).all()
            assert (found.broken_by == ROBUST).all()
            np.testing.assert_array_equal(found.adversarials[2], x[2])  # wrong as it is


def test_in_a_plain_script_with_preprocessing(small: Small) -> None:
    """Images that ART standardises first: the same outcome as with the standardisation inside the module."""
    net, x, y = small

    class Undone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Tensor:
            logits: Tensor = self.net(z * 0.3 + 0.4)
            return logits

    estimator = plain(Undone(), preprocessing=(np.float32(0.4), np.float32(0.3)))
    given = AutoAttack(estimator, eps=EPS["linf"], queries=QUERIES)
    inside = AutoAttack(plain(net), eps=EPS["linf"], queries=QUERIES)
    one_hot = np.eye(10, dtype=np.float32)[y[:16]]
    assert (held(given, x[:16], y[:16]) != held(inside, x[:16], y[:16])).sum() <= 1
    assert (np.isclose(given.generate(x[:16].astype(np.float64), one_hot), given.generate(x[:16], y[:16]))).all()


def test_the_runtime_judges(small: Small, tmp_path: Path) -> None:
    """A runtime that is always right keeps every image robust, whatever its twin says."""
    net, x, y = small
    predictor = as_onnx(net, tmp_path, (1, 8, 8))
    honest = AutoAttack(to_estimator(predictor), eps=EPS["linf"], queries=QUERIES)
    assert (honest.run(x[:8], y[:8]).broken_by >= 0).any()

    def knows(images: np.ndarray) -> np.ndarray:
        nearest = [int(np.abs(x[:8] - image).sum(axis=(1, 2, 3)).argmin()) for image in images]
        return np.eye(10, dtype=np.float32)[y[:8][nearest]]

    attack = AutoAttack(to_estimator(replace(predictor, predict=knows)), eps=EPS["linf"], queries=20)
    assert (attack.run(x[:8], y[:8]).broken_by == ROBUST).all()


def test_the_record_of_stages(small: Small, tmp_path: Path) -> None:
    net, x, y = small
    x, y = x[:16], y[:16].copy()
    y[:2] = (net(torch.from_numpy(x[:2])).argmax(dim=1).numpy() + 1) % 10
    attack = AutoAttack(plain(net), eps=EPS["linf"], queries=QUERIES)
    halfway = ArrayFile(tmp_path / "kept.npz")
    found = attack.run(x, y, halfway=halfway)
    assert found.broken_by is not None
    assert found.broken_by.dtype == np.int8
    assert (found.broken_by[:2] == ROBUST).all()
    np.testing.assert_array_equal(found.adversarials[:2], x[:2])
    broken = attack.estimator.predict(found.adversarials).argmax(axis=1) != y
    np.testing.assert_array_equal(found.broken_by[2:] != ROBUST, broken[2:])
    assert len(found.stage_seconds) == len(found.stages) == 4
    assert min(found.stage_seconds) > 0
    # From what was kept before the last stage the same comes out.
    again = AutoAttack(plain(net), eps=EPS["linf"], queries=QUERIES).run(x, y, halfway=halfway)
    np.testing.assert_array_equal(again.adversarials, found.adversarials)
    np.testing.assert_array_equal(again.broken_by, found.broken_by)
    assert again.stage_seconds[:3] == found.stage_seconds[:3]


def test_passes_of_an_image_that_withstands(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 + 900 + 900 backward ones with their forward passes, 900 + 5,000 forward ones, and the verdicts."""
    net, shape = Unbreakable(), (1, 8, 8)
    x = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    split = Split(x, np.arange(2), np.zeros(2, dtype=np.int64))

    def passes() -> tuple[int, int]:
        rows = plan(["autoattack"], norm="linf", eps=[0.05])
        unit = evaluate(as_torch(net, shape), split, rows, batch_size=32).outcomes[0].unit
        assert unit is not None
        assert not unit.broken.any()
        return unit.forward_passes, unit.backward_passes

    whole, backward = passes()
    monkeypatch.setitem(ATTACKS, "autoattack", replace(ATTACKS["autoattack"], params={"queries": 0}))
    without, same = passes()
    assert backward == same == 2 * (100 + 900 + 900)
    # Besides: the last point of each of 1 + 9 ascents, the ranking of classes by APGD-T and by FAB-T, Square's first
    # point, the clean image, a verdict after each stage, and the row's.
    beside = 10 + 2 + 1 + 1 + 4 + 1
    assert without == 2 * (100 + 900 + 900 + 900 + beside)
    # Square does not ask about a proposal that changes no pixel: half of them or more with one channel.
    assert 2 * 2000 < whole - without <= 2 * 5000


def test_bad_settings(small: Small) -> None:
    with pytest.raises(ValueError, match="expected version standard, plus, rand, got 'fast'"):
        AutoAttack(plain(small[0]), version="fast")  # type: ignore[arg-type]
