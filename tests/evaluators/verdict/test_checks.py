"""Is it believable: each check against a model built to trip it, and a robustly trained one that trips none."""

import importlib
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained import trained_on_digits
from victims import TwoClassLinear, as_torch, linear_split

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.ascent.inner_max import inner_max
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.data import load_dataset
from evaluators.attacks import ATTACKS
from evaluators.engine.evaluate import evaluate
from evaluators.engine.probes import Probes, probe
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import Surrogate, plan
from evaluators.target.estimators import Counted
from evaluators.target.judge import images_of
from evaluators.verdict.checks import Verdict, check

engine: Any = importlib.import_module("evaluators.engine.evaluate")  # the package names its function the same
EPS = 0.1
DIGIT = (1, 8, 8)
IMAGES = 80


class Small(nn.Module):
    """A classifier of digits with an activation that can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.last = nn.Linear(32 * 16, 10)
        self.activation: Callable[[Tensor], Tensor] = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.activation(self.second(self.activation(self.first(x)))).flatten(1))
        return logits


@pytest.fixture(scope="module")
def robust() -> Small:
    """Adversarially trained for a moment."""

    def ascend(net: Small, x: Tensor, y: Tensor) -> Tensor:
        return inner_max(lambda z: cross_entropy(net(z), y), x, x, ThreatModel.of("linf", EPS, 4))

    return trained_on_digits(
        Small, lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), steps=80, batch=64, attack=ascend
    )


def run(model: nn.Module | Predictor, names: tuple[str, ...] = ("fgsm", "pgd"), **options: Any) -> Evaluation:
    predictor = as_torch(model, DIGIT) if isinstance(model, nn.Module) else model
    rows = plan(
        names,
        norm=options.pop("norm", "linf"),
        eps=[options.pop("eps", EPS)],
        surrogates=options.pop("surrogates", ()),
        settings={"square": {"queries": 5}} if "square" in names else None,
    )
    split = options.pop("split", None) or load_dataset("digits").test.subset(options.pop("n", IMAGES))
    return evaluate(predictor, split, rows, **options)


def doubts(evaluation: Evaluation) -> dict[str, Verdict]:
    names = {outcome.row.id for outcome in evaluation.outcomes}  # what attacks have to say is theirs
    return {
        item.name: item.verdict for item in check(evaluation).items if item.verdict != "high" and item.name not in names
    }


def numbers(found: Probes) -> dict[str, float]:
    """Every number that was measured, under its path."""

    def walk(name: str, value: Any) -> dict[str, float]:
        if isinstance(value, dict):
            return {path: each for key, part in value.items() for path, each in walk(f"{name}/{key}", part).items()}
        return {} if value is None else {name: float(value)}

    return walk("", asdict(found))


class Around(nn.Module):
    """`after(net(before(x)))`."""

    def __init__(self, net: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("linf", 0.01), ("l2", 0.5)])
def test_a_healthy_model_is_believed(robust: Small, norm: str, eps: float) -> None:
    evaluation = run(robust, norm=norm, eps=eps)
    checks = check(evaluation)
    assert checks.verdict == "high", checks.items
    assert {item.name for item in checks.items} == {
        *("random", "batch", "rounding", "logits", "gradients", "eps 1", "twin", "loss", "single step", "more steps"),
    }
    assert evaluation.worst_case(eps) > 0.3


def rounded(x: Tensor) -> Tensor:
    return torch.round(x * 16) / 16


def thermometer(x: Tensor) -> Tensor:
    """Buckman et al. (ICLR 2018), read by a first layer that adds the levels up."""
    levels = torch.linspace(0, 1, 17)[:-1].view(-1, 1, 1, 1, 1)
    return (x > levels).float().mean(dim=0)


@pytest.mark.parametrize("defence", [rounded, thermometer])
def test_an_input_that_is_quantised(robust: Small, defence: Callable[[Tensor], Tensor]) -> None:
    """No gradient at all, so PGD leaves alone what examples made on the bare network break."""
    surrogates = [Surrogate("bare", as_torch(robust, DIGIT))]
    evaluation = run(Around(robust, defence), ("pgd", "transfer:pgd"), surrogates=surrogates)
    found = doubts(evaluation)
    assert {name for name, verdict in found.items() if verdict == "unreliable"} == {
        *("gradients", "eps 1", "loss", "white-box"),
    }
    assert check(evaluation).verdict == "unreliable"


def test_activations_that_are_quantised(robust: Small) -> None:
    quantised = Small().eval()
    quantised.load_state_dict(robust.state_dict())
    quantised.activation = lambda h: torch.round(h.relu() * 8) / 8
    assert doubts(run(quantised)).items() >= {"gradients": "unreliable", "eps 1": "unreliable"}.items()


def test_a_module_that_cuts_the_graph(robust: Small) -> None:
    predictor = as_torch(Around(robust, after=lambda logits: logits.detach()), DIGIT)
    split = load_dataset("digits").test.subset(20)
    found = probe(predictor, split, np.ones(20, np.bool_), norm="linf", eps=EPS, batch_size=20)
    assert found.gradients is not None
    assert found.gradients.zero == found.gradients.zero_margin == 1


def test_gradients_that_are_not_finite(robust: Small) -> None:
    def poisoned(x: Tensor) -> Tensor:
        return x + torch.sqrt(x * 0)  # the same values; the derivative of the root is 0 / 0

    predictor = as_torch(Around(robust, poisoned), DIGIT)
    split = load_dataset("digits").test.subset(20)
    found = probe(predictor, split, np.ones(20, np.bool_), norm="linf", eps=EPS, batch_size=20)
    assert found.gradients is not None
    assert found.gradients.non_finite == 1
    assert np.isfinite(list(numbers(found).values())).all()
    assert doubts(replace(run(robust, n=20), probes=found)).items() >= {"gradients": "unreliable"}.items()


def test_logits_that_saturate_the_cross_entropy(robust: Small) -> None:
    """The model hides nothing: who attacks differences of logits has seen what there is."""
    loud = Around(robust, after=lambda logits: logits * 1000)
    evaluation = run(loud)
    found = doubts(evaluation)
    assert found["saturated"] == "unreliable"
    assert "gradients" not in found
    assert "eps 1" not in found
    other = [
        replace(outcome, row=replace(outcome.row, attack="apgd-t", spec=ATTACKS["apgd-t"]))
        for outcome in evaluation.outcomes
    ]
    assert doubts(replace(evaluation, outcomes=[*evaluation.outcomes, *other]))["saturated"] == "warn"
    margins = [
        replace(outcome, row=replace(outcome.row, params={**outcome.row.params, "loss": "cw"}))
        for outcome in evaluation.outcomes
    ]
    assert "unreliable" not in doubts(replace(evaluation, outcomes=margins)).values()


def noisy(x: Tensor) -> Tensor:
    return x + 0.2 * torch.randn_like(x)


def shifted(x: Tensor) -> Tensor:
    return torch.roll(x, (random.randint(-1, 1), random.randint(-1, 1)), (2, 3))


@pytest.mark.parametrize("defence", [noisy, shifted])
def test_answers_at_random(robust: Small, defence: Callable[[Tensor], Tensor]) -> None:
    random.seed(0)
    evaluation = run(Around(robust, defence))
    assert check(evaluation).verdict == "unreliable"
    assert doubts(evaluation)["random"] == "unreliable"
    item = next(item for item in check(evaluation).items if item.name == "random")
    assert "version rand" in item.detail
    spec = ATTACKS["autoattack-rand"]
    averaged = [replace(outcome, row=replace(outcome.row, spec=spec)) for outcome in evaluation.outcomes]
    assert doubts(replace(evaluation, outcomes=averaged))["random"] == "warn"


def test_a_little_noise_is_a_doubt(robust: Small) -> None:
    evaluation = run(Around(robust, after=lambda logits: logits + 1e-3 * torch.randn_like(logits)))
    assert doubts(evaluation) == {"random": "warn"}


def test_answers_that_are_sometimes_no_numbers(robust: Small) -> None:
    predictor, calls = as_torch(robust, DIGIT), iter(range(10**6))
    spoilt = replace(predictor, predict=lambda x: predictor.predict(x) * np.float32(np.nan if next(calls) % 3 else 1))
    split = load_dataset("digits").test.subset(20)
    found = probe(spoilt, split, np.ones(20, np.bool_), norm="linf", eps=EPS, batch_size=20)
    assert np.isfinite(list(numbers(found).values())).all()
    assert doubts(replace(run(robust, n=20), probes=found))["random"] == "unreliable"


def test_answers_that_depend_on_the_batch(robust: Small) -> None:
    """Dynamic quantisation does so: its scale is the batch's."""
    evaluation = run(Around(robust, lambda x: x + 0.1 * (x.mean(dim=0, keepdim=True) - 0.3)))
    assert doubts(evaluation)["batch"] == "warn"


def test_probabilities(robust: Small) -> None:
    evaluation = run(Around(robust, after=lambda logits: logits.softmax(1)))
    assert doubts(evaluation) == {"logits": "warn"}


def test_a_constant_answer(robust: Small) -> None:
    constant = Around(robust, after=lambda logits: 0 * logits + torch.eye(10)[3])
    found = doubts(run(constant))
    assert (found["constant"], found["gradients"]) == ("unreliable", "unreliable")


def test_labels_that_mean_something_else(robust: Small) -> None:
    split = load_dataset("digits").test.subset(40)
    evaluation = run(robust, split=replace(split, labels=(split.labels + 1) % 10))
    assert doubts(evaluation)["clean"] == "unreliable"
    assert "no more than by guessing" in check(evaluation).items[0].detail


def test_a_runtime_that_undoes_the_attack(robust: Small) -> None:
    """It equals its twin on clean images, and only there: gradients lead to what does not break it."""
    predictor = as_torch(robust, DIGIT)
    clean = images_of(load_dataset("digits").test, slice(0, IMAGES))

    def undoes(images: np.ndarray) -> np.ndarray:
        nearest = [int(np.abs(clean - image).sum(axis=(1, 2, 3)).argmin()) for image in images]
        return predictor.predict(clean[nearest])

    evaluation = run(replace(predictor, predict=undoes))
    assert evaluation.twin is not None
    assert evaluation.twin.argmax_agreement == 1
    assert doubts(evaluation)["twin"] == "unreliable"


def test_gradients_that_are_shattered(robust: Small) -> None:
    """Ripples too small to matter for the answer, and too steep for a gradient to see past them."""
    evaluation = run(Around(robust, lambda x: x + 0.02 * torch.sin(300 * x)))
    found = doubts(evaluation)
    assert check(evaluation).verdict != "high", found


def test_a_single_step_that_is_stronger(robust: Small) -> None:
    evaluation = run(robust, n=20)
    before = evaluation.probes.gradients
    assert before is not None
    assert before.ascent is not None
    for one, loss, expected in ((0.56, 1.3, "warn"), (0.4, 3.0, "unreliable")):
        ascent = replace(before.ascent, left_fgsm=one, left_pgd=0.6, loss_fgsm=loss * before.ascent.losses[20])
        probes = replace(evaluation.probes, images=64, gradients=replace(before, ascent=ascent))
        found = doubts(replace(evaluation, probes=probes))
        assert found == {"single step": expected, "loss": expected}


def test_attacks_that_know_less_and_find_more(robust: Small) -> None:
    """By rows whose outcomes are written by hand: 60 of 80 images hold under gradients, 30 under Square."""
    evaluation = run(robust, ("fgsm", "pgd", "square"))
    right = np.ones(IMAGES, np.bool_)

    def believed(
        *held: int, attacks: tuple[str, ...] = ("fgsm", "pgd", "square"), only: int = IMAGES
    ) -> dict[str, Any]:
        outcomes = []
        for outcome, attack, left in zip(evaluation.outcomes, attacks, held, strict=True):
            first = only if attack == "square" else IMAGES  # a slow attack may have seen the first images alone
            unit = replace(outcome.unit, attacked=right[:first], broken=np.arange(IMAGES)[:first] >= left)  # type: ignore[type-var]
            row = replace(outcome.row, attack=attack, spec=ATTACKS[attack])
            outcomes.append(replace(outcome, unit=unit, row=row))
        found = doubts(replace(evaluation, outcomes=outcomes))
        assert found.keys() <= {"white-box", "more steps"}
        return found

    assert believed(60, 60, 60) == believed(70, 60, 59) == {}  # one image is noise
    assert believed(60, 60, 58) == {"white-box": "warn"}
    assert believed(60, 60, 30) == {"white-box": "unreliable"}
    assert believed(60, 60, 30, attacks=("fgsm", "fgsm", "square")) == {"white-box": "warn"}
    assert believed(58, 60, 60) == {"more steps": "warn"}
    assert believed(30, 60, 60) == {"more steps": "unreliable"}
    assert believed(60, 10, 10, only=10) == {}  # none of the ten fell to either
    assert believed(60, 10, 4, only=10) == {"white-box": "unreliable"}


def test_an_ensemble_that_needs_its_random_search(robust: Small) -> None:
    evaluation = run(robust, ("pgd",))
    broken = np.arange(IMAGES) < 40

    def believed(*stages: str, last: int) -> dict[str, Any]:
        """Of 40 broken images the last stage broke so many."""
        unit = evaluation.outcomes[0].unit
        by = np.where(broken, np.where(np.arange(IMAGES) < last, len(stages) - 1, 0), -1).astype(np.int8)
        unit = replace(unit, broken=broken, broken_by=by, stages=list(stages))  # type: ignore[type-var]
        outcome = evaluation.outcomes[0]
        row = replace(outcome.row, attack="autoattack", spec=ATTACKS["autoattack"])
        return doubts(replace(evaluation, outcomes=[replace(outcome, row=row, unit=unit)]))

    assert believed("apgd-ce", "square", last=1) == {}
    assert believed("apgd-ce", "square", last=3) == {"last stage": "warn"}
    assert believed("apgd-ce", "square", last=30) == {"last stage": "unreliable"}
    assert believed("apgd-ce", "apgd-t", last=30) == {}
    assert believed("square", last=30) == {}  # no gradients before it


def test_one_entry_that_is_not_finite_is_told_and_ends_no_search(robust: Small) -> None:
    """The slope of a root at 0: the first pixel of nearly all digits is black."""

    class WithRoot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = robust

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits + 1e-6 * x[:, :, 0, 0].sqrt() * torch.eye(10)[0]

    plain, found = run(robust), run(WithRoot())
    assert doubts(plain) == {}
    assert doubts(found) == {"finite gradients": "warn"}
    assert abs(found.worst_case(EPS) - plain.worst_case(EPS)) <= 2 / IMAGES  # 1e-6 may decide an image or two


def test_what_was_not_tried(robust: Small) -> None:
    """Without gradients, or with those of a quantised file alone, an accuracy is not yet believable."""
    predictor = as_torch(robust, DIGIT)
    quantised, box = replace(predictor, precision="int8"), replace(predictor, module=None)
    assert doubts(run(predictor, ("square",), n=20)) == {"white-box": "warn"}
    assert doubts(run(quantised, ("pgd",), n=20)) == {"white-box": "warn", "quantised": "warn"}
    assert doubts(run(quantised, ("pgd", "square"), n=20)) == {"quantised": "warn"}
    assert doubts(run(box, ("pgd",), n=20)) == {"gradients": "warn", "white-box": "warn"}
    found = probe(box, load_dataset("digits").test, np.ones(20, np.bool_), norm="linf", eps=EPS, batch_size=20)
    assert found.answers is not None
    assert found.gradients is None
    assert doubts(replace(run(robust, n=20), predictor=box, probes=found)) == {"gradients": "warn"}


def test_the_numbers_of_a_linear_model() -> None:
    """Logits (s, -s): a step of size a in Linf changes s by a |w|_1 and in L2 by a |w|_2, so all is known."""
    model, split = TwoClassLinear(), linear_split()
    w = model.w.detach().double().numpy()
    x = split.take(slice(None)) / np.float32(255)
    s = np.abs(x.reshape(len(x), -1).astype(np.float64) @ w + float(model.b.detach()))
    right = np.ones(len(x), np.bool_)
    for norm, length, eps in (("linf", np.abs(w).sum(), 0.02), ("l2", np.linalg.norm(w), 0.15)):
        found = probe(as_torch(model), split, right, norm=norm, eps=eps, batch_size=16)  # type: ignore[arg-type]
        assert found.gradients is not None
        assert found.gradients.ascent is not None
        ascent = found.gradients.ascent
        for step in (0, 1, 5, 10, 20):
            expected = np.log1p(np.exp(-2 * (s - min(step / 4, 1) * eps * length))).mean()
            assert ascent.losses[step] == pytest.approx(expected, rel=1e-4)
        assert ascent.loss_fgsm == pytest.approx(ascent.losses[20], rel=1e-4)
        assert ascent.left_fgsm == ascent.left_pgd == pytest.approx((s > eps * length).mean())
        assert 0 < ascent.left_pgd < 1  # or it would tell nothing
        assert found.gradients.left_at_eps_1 == 0
        assert found.images == len(x)


def test_what_a_probe_costs_and_leaves(robust: Small) -> None:
    counted = Counted(robust)
    split, before = load_dataset("digits").test, torch.get_rng_state()
    right = np.arange(len(split)) % 2 == 0
    watched = replace(as_torch(counted, DIGIT), module=counted)
    first = probe(watched, split, right, norm="l2", eps=0.5, batch_size=50)
    assert first.images == 64
    assert torch.equal(torch.get_rng_state(), before)
    again = probe(as_torch(robust, DIGIT), split, right, norm="l2", eps=0.5, batch_size=50)
    assert numbers(again) == pytest.approx(numbers(first), rel=1e-5)  # counting keeps it from being folded
    assert 40 * 64 < counted.forwards < 70 * 64
    assert counted.backwards < 45 * 64
    # The L1 ball is looked at by the L2 ball inside it: eps over the root of the number of pixels.
    inside = probe(as_torch(robust, DIGIT), split, right, norm="l1", eps=4.0, batch_size=50)
    assert inside == again
    nothing = probe(as_torch(robust, DIGIT), split, right & False, norm="linf", eps=EPS, batch_size=50)
    assert nothing == Probes(images=0)
    without = probe(as_torch(robust, DIGIT), split, right, norm="linf", eps=0.0, batch_size=50)
    assert without.gradients is not None
    assert without.gradients.ascent is None
    assert without.gradients.left_at_eps_1 == 0
