"""A search in bfloat16: what it finds is judged by the runtime, and no image is left alone because bfloat16 errs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import as_onnx, as_torch, one_convolution

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.data import Split, load_dataset
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.stages import CLOSING, Stage, Version, closed, ensemble
from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.attacks.native import NativeAttack, Victim, wrong
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.attacks.spec import Budget
from evaluators.engine import work
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import Surrogate, plan
from evaluators.target.estimators import Counted, PredictorClassifier, to_estimator
from evaluators.target.precision import PRECISIONS, Precision
from evaluators.verdict.checks import check

SHAPE = (1, 4, 4)
N, STEPS = 6, 12
EPS = 0.02


class Sums(nn.Module):
    """Four logits, each a multiple of the sum of some pixels, by a convolution.

    Args:
        weights: of the logits, for images of ones.
    """

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, len(weights), SHAPE[1:], bias=False)
        self.conv.weight.data = torch.tensor(weights)[:, None, None, None].expand(-1, 1, *SHAPE[1:]) / 16
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(x).flatten(1)
        return logits


def white() -> np.ndarray:
    return np.ones((N, *SHAPE), dtype=np.float32)


class Asked:
    """A predictor's answers, with the images that they were given for."""

    def __init__(self, predictor: Predictor) -> None:
        self.images = 0
        self.predictor = replace(predictor, predict=self._predict)
        self._answer = predictor.predict

    def _predict(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        return self._answer(images)


def estimator_of(predictor: Predictor, precision: Precision = "bf16") -> PredictorClassifier:
    """With a module that counts."""
    assert predictor.module is not None
    estimator = to_estimator(predictor, module=Counted(predictor.module), search_precision=precision)
    assert isinstance(estimator, PredictorClassifier)
    return estimator


Make = Callable[[nn.Module, tuple[int, int, int]], Predictor]


@pytest.fixture(params=["torch", "onnx"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def make(net: nn.Module, shape: tuple[int, int, int]) -> Predictor:
        return as_torch(net, shape) if request.param == "torch" else as_onnx(net, tmp_path, shape)

    return make


def test_logits_are_float32_of_numbers_in_bfloat16(made: Make) -> None:
    """The sum 257 lies between 256 and 258: bfloat16 has eight bits."""
    victim = Victim(estimator_of(made(Sums(257.0, 100.0, 0.0, 1.0), SHAPE)))
    x = torch.from_numpy(white()).requires_grad_()
    logits = victim.logits(x)
    assert logits.dtype == torch.float32
    assert logits[0].tolist() == [256.0, 100.0, 0.0, 1.0]
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.dtype == torch.float32
    assert victim.exact.logits(x)[0].tolist() == [257.0, 100.0, 0.0, 1.0]
    for answer in (victim.answers, victim.verdicts):
        assert answer(x.detach())[0].tolist() == [257.0, 100.0, 0.0, 1.0]


ATTACKING: dict[str, Callable[[PredictorClassifier], NativeAttack]] = {
    "apgd-ce": lambda net: APGD(net, eps=1e-6, steps=STEPS),
    "apgd-t": lambda net: APGD(net, eps=1e-6, steps=STEPS, targets=2),
    "apgd-l1": lambda net: APGD(net, eps=1e-6, steps=STEPS, norm="l1"),
    "pgd": lambda net: ProjectedGradient(net, eps=1e-6, step_size=1e-6, steps=STEPS, restarts=3),
}


@pytest.mark.parametrize("name", ATTACKING)
def test_an_image_that_only_bfloat16_gets_wrong_is_searched_to_the_end(name: str, made: Make) -> None:
    """For bfloat16 both logits are 256 and the first one wins; by the runtime the label is ahead, whatever comes."""
    asked = Asked(made(Sums(256.5, 257.0, 0.0, 1.0), SHAPE))
    y = np.ones(N, dtype=np.int64)
    passes = {}
    for precision in PRECISIONS:
        estimator = estimator_of(asked.predictor, precision)
        found = ATTACKING[name](estimator).run(white(), y).adversarials
        assert (asked.predictor.predict(found).argmax(axis=1) == y).all()
        missed = wrong(Victim(estimator).logits(torch.from_numpy(white())), torch.from_numpy(y))
        assert missed.all() == (precision == "bf16")
        passes[precision] = estimator.model.backwards
    assert passes["bf16"] == passes["fp32"] >= N * STEPS


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_an_image_that_bfloat16_misses_narrowly_is_shown_to_the_runtime(name: str, made: Make) -> None:
    """For bfloat16 the label is ahead by one step, 258 to 256; by the runtime the other class is, 257.4 to 257.2."""
    net = Sums(257.2, 257.4, 0.0, 1.0)
    net.conv.weight.data[0] = 258 / 16
    predictor = made(net, SHAPE)
    ahead = Sums(257.2, 257.4, 0.0, 1.0)
    runtime = replace(predictor, predict=as_torch(ahead, SHAPE).predict, network=None)
    y = np.zeros(N, dtype=np.int64)
    clean = white()
    clean[:, :, 0, 0] = 0.999
    attack = ATTACKING[name](estimator_of(runtime))
    victim = attack.victim
    logits = victim.logits(torch.from_numpy(clean))
    assert not wrong(logits, torch.from_numpy(y)).any()
    assert victim.suspects(logits, torch.from_numpy(y)).all()
    assert not victim.exact.suspects(logits, torch.from_numpy(y)).any()
    attack.run(clean, y)
    assert attack.estimator.model.backwards <= 2 * N  # the first look at two targets ends it


def test_what_breaks_breaks_the_runtime(made: Make) -> None:
    split = load_dataset("digits").test.subset(24)
    predictor = made(one_convolution(), (1, 8, 8))
    x = np.asarray(split.take(slice(None)) / np.float32(255), dtype=np.float32)
    labels = predictor.predict(x).argmax(axis=1)
    split = Split(split.take(slice(None)), np.arange(len(labels)), labels)
    names = ["fgsm", "pgd", "apgd-ce", "apgd-t"]
    rows = plan(names, norm="linf", eps=[0.1], search_precision="bf16")
    honest = evaluate(predictor, split, rows)
    for outcome in honest.outcomes:
        assert outcome.unit is not None
        assert outcome.unit.broken.any()
        gallery = predictor.predict(outcome.unit.gallery).argmax(axis=1)
        assert (gallery != labels[outcome.unit.gallery_at]).all()


def test_which_rows_search_in_bf16() -> None:
    names = [name for name, spec in ATTACKS.items() if "linf" in spec.norms or spec.kind == "min-norm"]
    surrogate = Surrogate("other", None, "none")
    names += ["transfer:pgd", "transfer:square"]
    rows = plan(names, norm="linf", eps=[0.1], surrogates=[surrogate], search_precision="bf16")
    lower = {row.id for row in rows if row.search_precision == "bf16"}
    assert {"fgsm", "pgd", "mim", "autoattack", "apgd-ce", "apgd-t", "transfer:other:pgd"} <= lower
    for row in rows:
        if row.attack in ("square", "fab", "fab-t", "cw2", "jsma") or row.attack.startswith("art:"):
            assert row.id not in lower
        assert (row.settings.get("search_precision") == "bf16") == (row.id in lower)
    plain = plan(names, norm="linf", eps=[0.1], surrogates=[surrogate])
    assert all("search_precision" not in row.settings for row in plain)


def test_a_distance_is_decided_in_float32() -> None:
    estimator = estimator_of(as_torch(one_convolution(), (1, 8, 8)))
    assert CarliniWagnerL2(estimator).victim.precision == "fp32"
    assert FAB(estimator).victim.precision == "fp32"
    assert AutoAttack(estimator).victim.precision == "bf16"


@pytest.mark.parametrize("name", [name for name, spec in ATTACKS.items() if not spec.foreign])
def test_rows_say_what_their_attacks_do(name: str) -> None:
    """A row that does not search in bf16 is kept as a float32 one."""
    spec, estimator = ATTACKS[name], estimator_of(as_torch(one_convolution(), (1, 8, 8)))
    eps = 0.1 if spec.kind == "budget" else 0.0
    attack = spec.ready(name, estimator, Budget(spec.norms[0], eps, 0, 8), spec.params)
    assert isinstance(attack, NativeAttack)
    assert (attack.victim.precision == "bf16") == spec.lowers


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="expected a search precision of fp32, bf16, got 'fp16'"):
        to_estimator(as_torch(one_convolution(), (1, 8, 8)), search_precision="fp16")  # type: ignore[arg-type]


def test_units_of_the_two_precisions_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = as_torch(one_convolution(), (1, 8, 8))
    split = load_dataset("digits").test.subset(16)
    runs: list[str] = []
    original: Any = vars(work)["search"]

    def noted(source: Any, row: Any, chunk: Any, **options: Any) -> Any:
        runs.append(f"{row.id} {row.search_precision}")
        return original(source, row, chunk, **options)

    monkeypatch.setattr(work, "search", noted)

    def attack(precision: Precision) -> list[str]:
        runs.clear()
        settings = {"square": {"queries": 20}}
        rows = plan(["pgd", "square"], norm="linf", eps=[0.05], settings=settings, search_precision=precision)
        evaluate(predictor, split, rows, store=tmp_path)
        return runs.copy()

    assert attack("fp32") == ["pgd fp32", "square fp32"]
    assert attack("bf16") == ["pgd bf16"]  # Square asks the runtime alone, and its answers are there
    assert attack("fp32") == attack("bf16") == []


def test_what_bf16_has_left_gets_a_last_ascent_in_float32(made: Make) -> None:
    split = load_dataset("digits").test.subset(24)
    predictor = made(one_convolution(), (1, 8, 8))
    seen: list[tuple[str, Precision]] = []

    class Noted(AutoAttack):
        def _attack(self, stage: Stage) -> NativeAttack:
            attack = super()._attack(stage)
            seen.append((stage.name, attack.victim.precision))
            return attack

    attack = Noted(estimator_of(predictor), eps=0.02, queries=5)
    x = np.asarray(split.take(slice(None)) / np.float32(255), dtype=np.float32)
    found = attack.run(x, split.labels)
    assert found.stages == ["apgd-ce", "apgd-t", CLOSING, "fab-t", "square"]
    assert seen == list(zip(found.stages, ["bf16", "bf16", "fp32", "fp32", "fp32"], strict=True))
    assert [stage.name for stage in AutoAttack(to_estimator(predictor)).stages] == [
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    ]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_last_ascent_follows_all_others(version: Version, classes: int) -> None:
    stages, _ = ensemble(version, classes=classes, norm="linf", side=32)
    names = [stage.name for stage in closed(stages, classes)]
    assert [name for name in names if name != CLOSING] == [stage.name for stage in stages]
    assert not any(name.startswith("apgd") for name in names[names.index(CLOSING) + 1 :])
    (last,) = (stage for stage in closed(stages, classes) if stage.exact)
    assert last.targets == (0 if classes < 4 else 1)
    assert last.eot == (20 if version == "rand" else 1)


def test_a_search_that_misses_much_in_bf16_is_doubted() -> None:
    predictor = as_torch(one_convolution(), (1, 8, 8))
    rows = plan(["autoattack"], norm="linf", eps=[0.05], search_precision="bf16")
    evaluation = evaluate(predictor, load_dataset("digits").test.subset(24), rows)
    unit = evaluation.outcomes[0].unit
    assert unit is not None
    at = unit.stages.index(CLOSING)
    for missed, verdict in ((0, "high"), (int(unit.broken.sum()), "unreliable")):
        by = unit.broken_by.copy()
        by[np.flatnonzero(unit.broken)[:missed]] = at
        told = replace(evaluation.outcomes[0], unit=replace(unit, broken_by=by))
        items = check(replace(evaluation, outcomes=[told])).items
        (item,) = (item for item in items if item.name == "search precision")
        assert item.verdict == verdict, item.detail
