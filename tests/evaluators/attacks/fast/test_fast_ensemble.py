"""The fast ensemble: beside the authors' AutoAttack, image by image, on masked gradients, and halfway."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from pyautoattack import AutoAttack as Package
from torch import Tensor, nn
from victims import TwoClassLinear, as_onnx, as_torch, linear_split, one_convolution

from dgad_tk.config.threat import Norm
from dgad_tk.data import Split, load_dataset
from evaluators.attacks.array_file import ArrayFile
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.stages import CLOSING, ROBUST
from evaluators.attacks.fast import search as search_module
from evaluators.attacks.fast.alarm import FIRED
from evaluators.attacks.fast.ensemble import FastAutoAttack
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.target.ball import DISTANCES
from evaluators.target.estimators import Counted, to_estimator
from evaluators.verdict.checks import check

EPS: dict[Norm, float] = {"linf": 0.09, "l2": 0.55}
"""At which about half of the images withstand."""
SHAPE = (1, 8, 8)
QUERIES = 300

Small = tuple[nn.Module, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def small() -> Small:
    """One convolution, trained for a moment on digits; 40 images that it gets right, and their labels."""
    net, test = one_convolution(), load_dataset("digits").test
    images, labels = test.take(slice(0, 60)) / np.float32(255), test.labels[:60]
    with torch.no_grad():
        right = np.flatnonzero(net(torch.from_numpy(images)).argmax(dim=1).numpy() == labels)[:40]
    return net, images[right], labels[right]


def plain(net: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=10, clip_values=(0.0, 1.0))


class Rounded(nn.Module):
    """A network behind an input rounding, which has no gradient."""

    def __init__(self, net: nn.Module, levels: int = 64) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x * self.levels).round() / self.levels)
        return logits


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_finds_what_the_authors_find_for_a_tenth_of_the_passes(small: Small, norm: Norm) -> None:
    """Their package is the judge: APGD-CE and APGD-T of 100 steps, which leave what the whole ensemble leaves here."""
    net, x, y = small
    package = Package(net, norm="Linf" if norm == "linf" else "L2", eps=EPS[norm], seed=0, version="standard")
    package.attacks_to_run, package.verbose = ["apgd-ce", "apgd-t"], False
    package.apgd_targeted.n_restarts, package.apgd_targeted.n_target_classes = 1, 9
    _, predicted = package.run_standard_evaluation(torch.from_numpy(x), torch.from_numpy(y), batch_size=len(x))
    left = predicted.numpy() == y
    counted = Counted(net)
    found = FastAutoAttack(to_estimator(as_torch(counted, SHAPE)), norm=norm, eps=EPS[norm], queries=QUERIES).run(x, y)
    assert found.broken_by is not None
    robust = found.broken_by == ROBUST
    assert 10 < left.sum() < 30
    assert (robust & ~left).sum() == 0
    assert (DISTANCES[norm](found.adversarials, x) <= EPS[norm] * (1 + 1e-6)).all()
    assert counted.backwards / robust.sum() < (100 + 900 + 900) / 4
    assert (counted.forwards + counted.backwards) / robust.sum() < 9700 / 8


@pytest.mark.parametrize("batch", [3, 16])
def test_an_image_is_judged_by_itself(small: Small, batch: int) -> None:
    """In another order, with others and alone, the same images break. Draws belong to the dataset index."""
    net, x, y = small
    index = np.arange(100, 100 + len(x))
    attack = partial(FastAutoAttack, plain(net), eps=EPS["linf"], queries=QUERIES)
    whole = attack().run(x, y, index=index).broken_by
    assert whole is not None
    order = np.random.default_rng(0).permutation(len(x))[:17]
    part = attack(batch_size=batch).run(x[order], y[order], index=index[order]).broken_by
    assert part is not None
    np.testing.assert_array_equal(part == ROBUST, whole[order] == ROBUST)


def test_the_alarm_goes_off_behind_a_rounding(small: Small) -> None:
    """Gradients are zero there. Square then attacks all images, and breaks what it breaks alone."""
    net, x, y = small
    masked = Rounded(net)
    right = np.flatnonzero(masked(torch.from_numpy(x)).argmax(dim=1).numpy() == y)
    x, y = x[right], y[right]
    found = FastAutoAttack(plain(masked), eps=EPS["linf"], queries=QUERIES, alarm=100).run(x, y)
    assert found.warnings == [FIRED]
    assert found.broken_by is not None
    standard = AutoAttack(plain(masked), eps=EPS["linf"], queries=QUERIES)
    standard.stages = [stage for stage in standard.stages if stage.name == "square"]
    expected = standard.run(x, y).broken_by
    assert expected is not None
    assert (expected >= 0).sum() > 5
    assert (found.broken_by[expected >= 0] >= 0).all()  # random starts may break some before
    assert (found.broken_by == found.stages.index("square")).sum() > 5


def test_the_verdict_says_that_the_alarm_went_off(small: Small) -> None:
    net, x, y = small
    split = Split((x * 255).round().astype(np.uint8), np.arange(len(x)), y)
    rows = plan(["autoattack-fast"], norm="linf", eps=[EPS["linf"]])
    honest, masked = (
        check(evaluate(as_torch(each, SHAPE), split, rows, batch_size=64)) for each in (net, Rounded(net))
    )
    assert not [item for item in honest.items if item.detail == FIRED]
    assert [item.verdict for item in masked.items if item.detail == FIRED] == ["warn"]
    assert masked.verdict == "unreliable"


def test_the_runtime_judges(small: Small, tmp_path: Path) -> None:
    """A runtime that is always right: nothing counts as broken, though the module is fooled."""
    net, x, y = small
    predictor = as_onnx(net, tmp_path, SHAPE)
    honest = FastAutoAttack(to_estimator(predictor), eps=EPS["linf"], queries=20, alarm=10).run(x[:8], y[:8])
    assert honest.broken_by is not None
    assert (honest.broken_by >= 0).any()

    def knows(images: np.ndarray) -> np.ndarray:
        nearest = [int(np.abs(x[:8] - image).sum(axis=(1, 2, 3)).argmin()) for image in images]
        return np.eye(10, dtype=np.float32)[y[:8][nearest]]

    attack = FastAutoAttack(to_estimator(replace(predictor, predict=knows)), eps=EPS["linf"], queries=20, alarm=10)
    fooled = attack.run(x[:8], y[:8]).broken_by
    assert fooled is not None
    assert (fooled == ROBUST).all()


class Blind(nn.Module):
    """A network that gives no numbers for images of one colour."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        plain = (x.flatten(1).amax(dim=1) == x.flatten(1).amin(dim=1))[:, None]
        return torch.where(plain, torch.nan, self.net(x))


@pytest.mark.parametrize(("module", "stage"), [("wrong", "untargeted"), ("not a number", "restarts")])
def test_a_module_that_is_wrong_where_the_runtime_is_right_hides_no_image(module: str, stage: str) -> None:
    """The module gets clean images wrong, as a twin may that rounds otherwise. The runtime can be broken all the same:
    all images are nearer to its boundary than eps, by a closed form."""
    net = TwoClassLinear().requires_grad_(False)
    if module == "wrong":
        x = linear_split(20).take(slice(None)) / np.float32(255)
        other = TwoClassLinear().requires_grad_(False)
        other.b += 0.015 * other.w.abs().sum()  # moves its boundary by 0.015 in Linf
    else:
        x, other = np.full((2, 1, 6, 6), 0.5, dtype=np.float32) + np.float32([0, 0.01]).reshape(2, 1, 1, 1), Blind(net)
    runtime = as_torch(net, (1, 6, 6))
    y = runtime.predict(x).argmax(axis=1)
    margins = net.margins(x, "linf")
    near = (margins > 1e-4) & (margins < 0.05 / 1.02)
    x, y = x[near], y[near]
    shown = as_torch(other, (1, 6, 6)).predict(x)
    assert (~np.isfinite(shown).all(axis=1) | (shown.argmax(axis=1) != y)).any()
    predictor = replace(as_torch(other, (1, 6, 6)), predict=runtime.predict, network=None)
    found = FastAutoAttack(to_estimator(predictor), eps=0.05, queries=1, alarm=1).run(x, y)
    assert found.broken_by is not None
    assert (found.broken_by >= 0).all()
    assert found.stages[found.broken_by.max()] == stage


class KilledError(Exception):
    pass


@pytest.mark.parametrize("stage", ["targeted", "restarts", "square"])
def test_a_killed_search_goes_on(small: Small, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = small
    counted = Counted(Rounded(net))
    attack = partial(FastAutoAttack, plain(counted), eps=EPS["linf"], queries=QUERIES, alarm=50)
    whole, halfway = attack().run(x, y), ArrayFile(tmp_path / "kept.npz")
    asked, counted.forwards = counted.forwards, 0
    run = search_module.Search.run

    def dies(self: Any, name: str) -> list[str]:
        if name == stage:
            raise KilledError
        return run(self, name)

    with monkeypatch.context() as killed:
        killed.setattr(search_module.Search, "run", dies)
        with pytest.raises(KilledError):
            attack().run(x, y, halfway=halfway)
    begun: list[str] = []
    monkeypatch.setattr(search_module.Search, "run", lambda self, name: (begun.append(name), run(self, name))[1])
    again = attack().run(x, y, halfway=halfway)
    assert begun[0] == stage
    assert counted.forwards == asked  # nothing twice, so that the record tells the same number of passes
    np.testing.assert_array_equal(again.adversarials, whole.adversarials)
    np.testing.assert_array_equal(again.broken_by, whole.broken_by)
    assert again.warnings == whole.warnings
    assert len(again.stage_seconds) == len(whole.stage_seconds) == len(whole.stages)


def test_a_search_in_bf16_closes_in_float32(small: Small) -> None:
    net, x, y = small
    low = to_estimator(as_torch(net, SHAPE), search_precision="bf16")
    found = FastAutoAttack(low, eps=EPS["linf"], queries=QUERIES).run(x, y)
    full = FastAutoAttack(plain(net), eps=EPS["linf"], queries=QUERIES).run(x, y)
    assert found.stages == ["untargeted", "targeted", "restarts", CLOSING, "square"]
    assert CLOSING not in full.stages
    assert found.broken_by is not None
    assert full.broken_by is not None
    np.testing.assert_array_equal(found.broken_by >= 0, full.broken_by >= 0)


def test_images_that_are_wrong_are_left_alone(small: Small) -> None:
    net, x, y = small
    found = FastAutoAttack(plain(net), eps=EPS["linf"], queries=20).run(x[:6], (y[:6] + 1) % 10)
    assert found.broken_by is not None
    assert (found.broken_by == ROBUST).all()
    np.testing.assert_array_equal(found.adversarials, x[:6])


def test_small_images_have_no_alarm_in_l2() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), input_shape=(1, 4, 4), nb_classes=3, clip_values=(0.0, 1.0)
    )
    attack = FastAutoAttack(estimator, norm="l2", eps=0.5)
    x = np.full((3, 1, 4, 4), 0.5, dtype=np.float32)
    found = attack.run(x)
    assert found.stages == ["untargeted", "targeted", "restarts"]
    assert found.warnings == ["no alarm for masked gradients: Square needs images of 5 pixels a side, not 4"]


def test_bad_settings(small: Small) -> None:
    with pytest.raises(ValueError, match="expected norm linf or l2, got 'l1'"):
        FastAutoAttack(plain(small[0]), norm="l1")
    with pytest.raises(ValueError, match="expected alarm >= 1, got 0"):
        FastAutoAttack(plain(small[0]), alarm=0)
