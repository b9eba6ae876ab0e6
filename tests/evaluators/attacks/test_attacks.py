"""Every row of ATTACKS in every norm, on linear models whose margins are known: torch, ONNX and INT8."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_arts import QUICK as ARTS_QUICK
from torch import Tensor, nn
from victims import as_onnx, as_torch

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack import ensemble
from evaluators.engine import search
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.target.ball import DISTANCES
from evaluators.target.precision import PRECISIONS, Precision
from exporters.formats import load
from exporters.onnx_write.int8 import Int8, save_onnx_int8

SHAPE = (1, 6, 6)
BAND = 1e-4
GRID = 1 / 255
N, WRONG = 16, 2

QUICK: dict[str, dict[str, Any]] = {
    **{f"art:{name}": params for name, params in ARTS_QUICK.items() if name not in ("cw-l2", "elasticnet")},
    "square": {"queries": 400},
    "art:square": {"max_iter": 400},
    "cw2": {"max_iter": 200},
    "autoattack-max": {"steps": 40, "restarts": 1, "queries": 100},
}
STAGES: dict[str, dict[str, int]] = {"APGD": {"steps": 40}, "FAB": {"steps": 10}, "Square": {"queries": 100}}
"""What the stages of an ensemble are cut to."""

THREE_CLASSES = ("apgd-dlr", "art:auto-pgd-dlr", "art:signopt", "art:pixel")
FOUR_CLASSES = (*THREE_CLASSES, "apgd-t", *(name for name in ATTACKS if name.startswith("autoattack")))
"""Rows that refuse two classes, or (the ensembles) replace stages then: judged on four."""

REACH: dict[tuple[str, Norm], float] = {
    # In L1 a gradient step moves a share of the pixels and the best point moves one, which takes a search to find.
    **{(name, "l1"): 1.1 for name in ATTACKS},
    ("autoattack-rand", "l1"): 1.3,
    # Random search. In L2 and L1 its tiles of 2 x 2 pixels and more are far from the best direction of 36 random ones.
    ("square", "linf"): 1.5,
    ("art:square", "linf"): 1.5,
    ("square", "l2"): 4.0,
    ("art:square", "l2"): 4.0,
    ("square", "l1"): 4.0,
    # One step along a direction found by differences of probabilities that are all but equal in float32.
    ("art:virtual-adversarial", "l2"): np.inf,
}
"""Budget attacks break what is nearer than eps divided by this; 1 where nothing is said."""
BF16_REACH = 1.1
"""The same in bf16, whose 8 bits of pixels and logits hide which of two points is better by a part in 256. In L1, where
a step moves few pixels, that ends a search the earliest."""

NEAREST: dict[str, float] = {
    "cw2": 1.02,
    "fmn": 1.02,
    "ddn": 1.5,  # its length starts at 1 and changes by a twentieth: it does not get below 0.95^100 = 0.006
    "sigma-zero": 1.02,
    "cw2-paper": 2.3,  # one search: the first step of Adam goes far past the smallest margins and is not taken back
    "art:deepfool": 1.021,  # its own overshoot
    "art:cw-l2": 1.8,  # five search steps of c, after which it is half way
    "art:elasticnet": 1.3,  # the same, and an L1 penalty besides
    "art:newtonfool": 1.01,  # but it fails on half of the images
    # By predictions alone, with a fiftieth of the questions that they are made for.
    "art:hopskipjump": 3.0,
    "art:hopskipjump-linf": 6.0,
    "art:signopt": 5.5,
    # These minimise or bound the number of pixels, stop at the first success, or take steps of a fixed size.
    **dict.fromkeys(("jsma", "art:jsma", "art:cw-l0", "art:pixel", "art:cw-linf", "art:boundary"), np.inf),
    **dict.fromkeys(("art:simba", "art:zoo"), np.inf),
}
"""Min-norm attacks end within so many times the margin."""
CONFIDENCE = {"cw2-paper": 0.01}
"""By how much logits are to turn, which is a distance too."""
FAILS: dict[str, float] = {"art:newtonfool": 0.0, "art:zoo": 0.0, "art:signopt": 0.5}
"""They leave images unbroken, and break more than this share. ART's ZOO breaks none whose pixels are rounded: its
differences are 1e-4 wide. SignOPT misses where no direction that it draws is one; 20 seeds broke 14 to 16 of 16."""


class Linear(nn.Module):
    """Logits W (x - 1/2), the rows of W whole numbers of 1/32 up to 127/32: INT8 holds them exactly."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        rows = torch.randn(classes, int(np.prod(SHAPE)), generator=torch.Generator().manual_seed(5))
        rows = (rows * 127 / rows.abs().amax(dim=1, keepdim=True)).round() / 32
        self.flatten, self.linear = nn.Flatten(), nn.Linear(rows.shape[1], classes)
        self.linear.weight.data, self.linear.bias.data = rows, -0.5 * rows.sum(dim=1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flatten(x))
        return logits


@dataclass(frozen=True)
class Target:
    """A linear model and images away from 0 and 1 that it gets right."""

    predictor: Predictor
    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    step: float

    def margins(self, norm: Norm, ahead: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Distances to where another class is `ahead`, `(N,)`, and how far the rounding of pixels can move them."""
        shifts = self.weights[None] - self.weights[self.labels][:, None]  # of each image from its label to each class
        gaps = ahead - np.einsum("nkd,nd->nk", shifts, self.images.reshape(len(self.images), -1) - 0.5)
        if norm == "l0":
            return self._fewest(shifts, gaps)
        dual = np.linalg.norm(shifts, ord={"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            every, slack = gaps / dual, 0.5 * self.step * np.abs(shifts).sum(axis=2) / dual
        return np.nanmin(every, axis=1), np.nanmax(slack, axis=1)

    def _fewest(self, shifts: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How few values, moved to 0 or 1, bring another class ahead; black and white are on the grid of INT8."""
        flat = self.images.reshape(len(self.images), 1, -1)
        gains = np.maximum(shifts * (1 - flat), -shifts * flat)
        most = np.cumsum(-np.sort(-gains, axis=2), axis=2)
        every = np.where((shifts != 0).any(axis=2), 1 + (most <= gaps[:, :, None]).sum(axis=2), np.inf)
        return every.min(axis=1), np.full(len(flat), float(self.step > 0))  # rounding may cost one more


Make = Callable[[str, int], Target]
"""Runtime and number of classes to a target; each is made once."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, int], Target] = {}

    def make(runtime: str, classes: int) -> Target:
        folder, net = tmp_path_factory.mktemp(runtime), Linear(classes).eval()
        if runtime == "torch":
            predictor = as_torch(net, SHAPE)
        elif runtime == "onnx":
            predictor = as_onnx(net, folder, SHAPE)
        else:
            predictor = as_int8(net, folder)
            assert predictor.precision == "int8"
        images = np.random.default_rng(2).integers(90, 166, size=(N, *SHAPE)).astype(np.float32) / np.float32(255)
        labels = predictor.predict(images).argmax(axis=1)
        return Target(predictor, images, labels, net.linear.weight.double().numpy(), GRID * (runtime == "int8"))

    def once(runtime: str, classes: int) -> Target:
        if (runtime, classes) not in made:
            made[runtime, classes] = make(runtime, classes)
        return made[runtime, classes]

    return once


def as_int8(net: Linear, folder: Path) -> Predictor:
    """Calibrated on images from 0 to 1, so that pixels are rounded to the grid they come from."""
    record = Artifact(
        model="resnet8",
        classes=[str(label) for label in range(net.linear.out_features)],
        input_shape=SHAPE,
        dataset="digits",
        threat={"norm": "linf", "eps": 0.15, "step_size": 0.0375, "steps": 4},
    )
    images = np.linspace(0, 1, 16 * int(np.prod(SHAPE)), dtype=np.float32).reshape(16, *SHAPE)
    save_onnx_int8(net, record, folder / "victim.onnx", images=images, int8=Int8(16))
    return load(folder / "victim.onnx")


@pytest.fixture
def _quick_ensembles(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(cls: Any, quick: dict[str, int]) -> Any:
        return lambda *args, **settings: cls(*args, **{**settings, **quick})

    for name, quick in STAGES.items():
        monkeypatch.setattr(ensemble, name, cut(getattr(ensemble, name), quick))


CASES = [
    (name, norm, precision)
    for name, spec in ATTACKS.items()
    for norm in spec.norms
    for precision in (PRECISIONS if spec.lowers else PRECISIONS[:1])
]


@pytest.mark.usefixtures("_quick_ensembles")
@pytest.mark.parametrize("runtime", [pytest.param("torch", marks=pytest.mark.portable), "onnx", "int8"])
@pytest.mark.parametrize(("name", "norm", "precision"), CASES)
def test_invariants_of_every_attack(
    name: str, norm: Norm, precision: Precision, runtime: str, target: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong already is nobody's success; nothing breaks below its margin; what is near enough breaks.

    A rounded pixel (INT8) may move a margin by half a step of every pixel; above the rest is exact up to BAND.
    """
    monkeypatch.setattr(search, "GALLERY", N)  # every image that broke
    spec, model = ATTACKS[name], target(runtime, 4 if name in FOUR_CLASSES else 2)
    margins, slack = model.margins(norm)
    eps = 1.2 * float(np.median(margins))
    labels = model.labels.copy()
    labels[:WRONG] = (labels[:WRONG] + 1) % model.predictor.classes
    split = Split((model.images * 255).round().astype(np.uint8), np.arange(N), labels)

    planned = plan([name], norm=norm, eps=[eps], settings={name: QUICK.get(name, {})}, search_precision=precision)
    unit = evaluate(model.predictor, split, planned, batch_size=N).outcomes[0].unit
    assert unit is not None
    assert unit.attacked.tolist() == [False] * WRONG + [True] * (N - WRONG)
    assert not (unit.broken & ~unit.attacked).any()
    assert (unit.adv_pred[unit.broken] != labels[unit.broken]).all()
    assert unit.forward_passes >= N - WRONG
    assert (unit.backward_passes > 0) == spec.needs_gradients

    assert np.array_equal(np.sort(unit.gallery_at), np.flatnonzero(unit.broken))
    assert unit.gallery.min(initial=0) >= 0
    assert unit.gallery.max(initial=1) <= 1
    if unit.broken.any():
        assert (model.predictor.predict(unit.gallery).argmax(axis=1) == unit.adv_pred[unit.gallery_at]).all()
    distance = DISTANCES[norm](unit.gallery, model.images[unit.gallery_at])
    assert np.array_equal(np.sort(distance), np.sort(unit.distance[unit.broken]))
    least, most = margins - slack, margins + slack
    assert (distance >= least[unit.gallery_at] * (1 - BAND)).all()
    if spec.kind == "budget":
        assert (distance <= eps).all()
        reach = REACH.get((name, norm), 1.0) * (BF16_REACH if precision == "bf16" else 1.0)
        near = unit.attacked & (most < eps * (1 - BAND) / reach)
        assert near.any() or (name, norm) == ("art:virtual-adversarial", "l2")
        assert unit.broken[near].all()
    else:
        broken = unit.broken[unit.attacked].mean()
        assert broken > FAILS.get(name, 0.0) or (name, runtime) == ("art:zoo", "int8")
        assert broken == 1 or name in FAILS
        ahead, _ = model.margins(norm, CONFIDENCE.get(name, 0.0))
        assert (distance <= (NEAREST[name] * (ahead + slack))[unit.gallery_at]).all()


class Loud(Linear):
    """Logits so far apart that the softmax is exactly one-hot: the cross-entropy has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * super().forward(x)


class Masked(Linear):
    """The same answers without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


OWN = [name for name, spec in ATTACKS.items() if spec.kind == "budget" and not spec.foreign and spec.searches]


@pytest.mark.usefixtures("_quick_ensembles")
@pytest.mark.parametrize("name", OWN)
def test_what_rows_say_of_themselves_is_so(name: str) -> None:
    """`scale_free` rows break what the cross-entropy cannot see, and no others do; so with `asks` and gradients."""
    spec, images = ATTACKS[name], np.random.default_rng(2).integers(90, 166, size=(N, *SHAPE)).astype(np.uint8)

    def broken(net: Linear, eps: float) -> tuple[float, list[str]]:
        model = as_torch(net.eval(), SHAPE)
        labels = model.predict(images / np.float32(255)).argmax(axis=1)
        rows = plan([name], norm="linf", eps=[eps], settings={name: QUICK.get(name, {})})
        unit = evaluate(model, Split(images, np.arange(N), labels), rows, batch_size=N).outcomes[0].unit
        assert unit is not None
        return float(unit.broken.mean()), unit.stages

    share, stages = broken(Loud(4), 0.05)
    assert (share > 0.7) == spec.scale_free
    assert spec.asks == (broken(Masked(4), 0.05)[0] > 0.7)
    asking = [number for number, stage in enumerate(stages) if stage.startswith("square")]
    assert bool(asking) <= spec.asks
    last = asking == [len(stages) - 1] and len(stages) > 1
    assert not last or {stages[number] for number in asking} <= set(spec.alarms)


def test_rows_that_two_classes_are_too_few_for(target: Make) -> None:
    model = target("torch", 2)
    split = Split((model.images * 255).round().astype(np.uint8), np.arange(N), model.labels)
    for name in (*THREE_CLASSES, "apgd-t"):
        norm = ATTACKS[name].norms[0]
        with pytest.raises(UserError, match=f"'{name}' needs at least [34] classes, the model has 2"):
            evaluate(model.predictor, split, plan([name], norm=norm, eps=[0.1]), batch_size=N)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_square_says_that_images_are_too_small_for_its_grid(norm: Norm) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    net[1].bias.data = torch.tensor([9.0, 0.0])
    split = Split(np.zeros((2, 1, 4, 4), dtype=np.uint8), np.arange(2), np.zeros(2, dtype=np.int64))
    with pytest.raises(UserError, match=f"'square' in {norm} needs images of at least 5 pixels a side, these have 4"):
        predictor = as_torch(net.eval(), (1, 4, 4))
        evaluate(predictor, split, plan(["square"], norm=norm, eps=[0.1]), batch_size=2)


def test_bad_parameters() -> None:
    for setting, message in [
        ({"pgd": {"step": 5}}, "attack 'pgd' has no parameter 'step' .did you mean 'steps'"),
        ({"fgsm": {"alarm": 0}}, "attack 'fgsm' has no parameter 'alarm' .it has nothing to set"),
        ({"pgd": {"steps": 0}}, "pgd.steps must be a whole number of at least 1, got 0"),
        ({"pgd": {"steps": "ten"}}, "pgd.steps must be a whole number of at least 1, got 'ten'"),
        ({"pgd": {"relative_step": -0.1}}, "pgd.relative_step must be a number of at least 0, got -0.1"),
        ({"pgd": {"relative_step": float("nan")}}, "pgd.relative_step must be a number of at least 0, got nan"),
        ({"pgd": {"loss": "hinge"}}, "pgd.loss must be one of ce, dlr, cw, kl, got 'hinge'"),
    ]:
        with pytest.raises(UserError, match=message):
            plan(["fgsm", "pgd"], norm="linf", eps=[0.1], settings=setting)
    with pytest.raises(UserError, match="attack 'fgsm' has no norm 'l1'"):
        plan(["fgsm"], norm="l1", eps=[0.1])
