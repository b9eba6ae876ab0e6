"""What an evaluation will cost: measured with a clock that is ours, counted against what it then did cost."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Victim
from torch import Tensor, nn
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from cli.plan import FILE, plan_table, remembered, seconds_of, summary
from dgad_tk.common import UserError
from dgad_tk.data import load_dataset
from evaluators import Row, Surrogate, evaluate, plan
from evaluators.planner import BEFORE, CHECK_PASSES, LEAVES_AFTER, Line, as_document, estimate, half_width, plan_budget
from evaluators.survey import PILOT_MOST, Cost, Costs, Survey, measure, survey

FREE = Costs(Cost(0.0, 0.0), Cost(0.0, 0.0))
EVEN = Costs(Cost(0.0, 0.001), Cost(0.0, 0.004))
"""Seconds an image, at any batch."""


def found(costs: Costs = EVEN, *, robust: dict[Any, float] | None = None, clean: float = 1.0, **more: Any) -> Survey:
    return Survey({None: costs}, clean, robust or {}, more.get("batch_size", 500), more.get("classes", 10))


def row(forwards: int, backwards: int, *, eps: float | None = 0.1, searches: bool = True, **more: Any) -> Row:
    spec: Any = SimpleNamespace(
        passes=lambda params, classes: (forwards, backwards),
        searches=searches,
        needs_gradients=backwards > 0,
    )
    surrogate, smaller = more.pop("surrogate", None), more.pop("smaller", ())
    return Row("it", "it", spec, more, "linf", eps, surrogate, smaller)


class Watch:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """A linear model whose passes take 0.5 s a batch and 0.25 s an image."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.net, self.watch = TwoClassLinear(), watch

    def forward(self, x: Tensor) -> Tensor:
        self.watch.now += 0.5 + 0.25 * len(x)
        logits: Tensor = self.net(x)
        return logits


def test_costs_of_a_call_and_of_an_image_are_told_apart() -> None:
    watch = Watch()
    slow = Slow(watch)
    predictor = replace(as_torch(slow), module=slow, network=None)
    images = np.zeros((64, *SHAPE), dtype=np.float32)
    costs = measure(predictor, images, watch)
    assert costs.backward is not None
    for cost in (costs.forward, costs.backward):
        assert (cost.call, cost.image) == pytest.approx((0.5, 0.25))
        assert cost.per_image(10) == pytest.approx(0.3)
    assert measure(replace(predictor, module=None), images, watch).backward is None
    single = measure(predictor, images[:1], watch).forward
    assert single.per_image(1) == pytest.approx(0.75)


def test_noise_makes_no_cost_negative() -> None:
    """A batch that is faster than its eighth, and a first call that compiles."""
    watch, calls = Watch(), []

    def predict(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        seconds = (100, 3, 1, 2)[calls.count(len(images)) - 1]
        watch.now += seconds if len(images) == 80 else 2 * seconds
        return np.zeros((len(images), 2), dtype=np.float32)

    predictor = replace(as_torch(TwoClassLinear()), predict=predict, module=None)
    forward = measure(predictor, np.zeros((80, *SHAPE), dtype=np.float32), watch).forward
    assert forward.call >= 0
    assert forward.image >= 0
    assert forward.per_image(80) == pytest.approx(2 / 80)  # the median of 3, 1 and 2


@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_pass_counts_are_those_of_the_evaluation(eps: float) -> None:
    """Where nothing leaves early, images and passes are known to the last one."""
    split = linear_split(30)
    wrong = split.labels.copy()
    wrong[:6] = 1 - wrong[:6]
    rows = plan(["fgsm", "pgd"], norm="linf", eps=[eps], settings={"pgd": {"steps": 7}})
    done = evaluate(as_torch(TwoClassLinear()), replace(split, labels=wrong), rows, batch_size=16)
    stated = [row(0, 1, searches=False), row(0, 7, searches=False)]
    for line, outcome in zip(estimate(stated, found(clean=0.8), 30)[1:], done.outcomes, strict=True):
        assert outcome.unit is not None
        assert line.images == int(outcome.unit.attacked.sum()) == 24
        assert line.backward_passes == outcome.unit.backward_passes
        assert line.forward_passes == outcome.unit.forward_passes


def test_seconds_of_a_row_by_hand() -> None:
    """200 images, 150 of them right; 60 withstand 100 backward passes and 50 forward ones, 90 leave after some."""
    (before, line) = estimate([row(50, 100)], found(clean=0.75, robust={(None, "linf", 0.1): 0.4}), 200)
    assert before.id == BEFORE
    assert (before.forward_passes, before.backward_passes) == (
        200 + CHECK_PASSES * PILOT_MOST,
        CHECK_PASSES * PILOT_MOST,
    )
    forwards, backwards = 60 * 50, 60 * 100 + 90 * LEAVES_AFTER
    assert line == Line("it", 150, forwards + backwards + 150, backwards, pytest.approx(line.seconds))
    assert line.seconds == pytest.approx(0.001 * (forwards + 150) + 0.004 * backwards)
    (_, half) = estimate([row(50, 100)], found(clean=0.75, robust={(None, "linf", 0.1): 0.4}), 200, processes=2)
    assert half == replace(line, seconds=pytest.approx(line.seconds / 2))


def test_what_an_image_costs() -> None:
    survey_ = found(FREE, robust={(None, "linf", 0.05): 0.8, (None, "linf", 0.1): 0.2})

    def backwards(each: Row, n: int = 100) -> int:
        return estimate([each], survey_, n)[1].backward_passes

    assert backwards(row(0, 10)) == 1000  # shorter than what a breaking image takes
    assert backwards(row(0, 1000)) == 20 * 1000 + 80 * LEAVES_AFTER
    assert backwards(row(0, 1000, searches=False)) == 100_000
    assert backwards(row(0, 1000, eps=None)) == 100_000  # the nearest image is sought to the end
    assert backwards(row(0, 1000, eps=None, samples=30)) == 30_000
    assert backwards(row(0, 1000, eps=None, samples=300)) == 100_000
    # 20 of 100 are left by the smaller radius before; a quarter of these withstand the larger too.
    assert backwards(row(0, 1000, smaller=(0.05,))) == 20 * 1000 + 60 * LEAVES_AFTER
    queries = estimate([row(5000, 0)], survey_, 100)[1]
    assert queries.forward_passes == 20 * 5000 + 80 * 250 + 100
    unknown = estimate([row(0, 1000, eps=0.3)], survey_, 100)[1]
    assert unknown.backward_passes == 100_000
    assert unknown.note.startswith("at most")


def test_small_batches_cost_more() -> None:
    """40 of 1,000 images withstand, 20 in each chunk of 500: they are alone in the end, whatever the batch size."""
    costs = Costs(Cost(0.0, 0.0), Cost(1.0, 0.1))
    for batch_size, full, left in ((500, 500, 20), (20, 20, 20), (8, 500 / 63, 20 / 3)):
        there = found(costs, robust={(None, "linf", 0.1): 0.04}, batch_size=batch_size)
        line = estimate([row(0, 500)], there, 1000)[1]
        expected = 40 * 500 * (1 / left + 0.1) + 960 * LEAVES_AFTER * (1 / full + 0.1)
        assert line.seconds == pytest.approx(expected)


def test_rows_that_cannot_run() -> None:
    black = found(Costs(Cost(0.0, 0.001), None))
    lines = estimate([row(0, 10), row(10, 0), row(0, 10, surrogate=Surrogate("gone", None, "no images"))], black, 100)
    assert [line.note for line in lines[1:]] == [
        "will be skipped: the model has no gradients",
        "at most: how many images withstand is unknown",
        "will be skipped: no images",
    ]
    assert [line.seconds > 0 for line in lines] == [True, False, True, False]
    assert lines[0].backward_passes == 0
    foreign = row(0, 10)
    foreign.spec.passes = None
    assert estimate([foreign], found(), 100)[1].note == "not in the total: what it costs is not known beforehand"


def test_transfer_costs_the_surrogate() -> None:
    source = Surrogate("small", as_torch(TwoClassLinear()), "")
    costs = {None: EVEN, "small": Costs(Cost(0.0, 0.0), Cost(0.0, 0.5))}
    there = Survey(costs, 1.0, {("small", "linf", 0.1): 0.5, (None, "linf", 0.1): 1.0}, 500, 10)
    line = estimate([row(0, 40, surrogate=source)], there, 10)[1]
    assert line.backward_passes == 5 * 40 + 5 * LEAVES_AFTER
    assert line.seconds == pytest.approx(line.backward_passes * 0.5 + 10 * 0.001)


def test_the_budget_buys_as_many_images_as_fit() -> None:
    rows = [row(0, 100, searches=False)]
    there = found(Costs(Cost(0.0, 0.001), Cost(0.0, 0.01)))

    def seconds(n: int) -> float:  # clean, checks, attack, verdict
        return 0.001 * n + 0.01 * CHECK_PASSES * min(n, PILOT_MOST) + 1.0 * n + 0.001 * n

    assert sum(line.seconds for line in estimate(rows, there, 70)) == pytest.approx(seconds(70))
    for budget in (seconds(10) + 0.01, 100.0, 1234.5, 1e9):
        n = plan_budget(rows, there, budget, 2345)
        assert n in {*range(10, 2345, 10), 2345}
        assert seconds(n) <= budget
        assert n == 2345 or seconds(n + 10) > budget
    assert plan_budget(rows, there, 1e9, 3) == 3
    assert plan_budget(rows, there, 700, 2345, processes=2) > 2 * plan_budget(rows, there, 350, 2345)
    assert plan_budget(rows, replace(there, classes=1000), 1000, 50_000) % 100 == 0
    with pytest.raises(UserError, match="a budget of 5 s is too little: 10 images take about 15 s"):
        plan_budget(rows, there, 5, 2345)


def test_half_width_is_wilsons() -> None:
    """50 of 100: 40.4 % to 59.6 % (Newcombe, Statistics in Medicine 17, 1998, and every table since)."""
    assert half_width(found(clean=0.5), 100) == pytest.approx(0.0962, abs=1e-4)
    robust = {(None, "linf", 0.1): 0.625, (None, "linf", 0.2): 0.01, ("other", "linf", 0.1): 0.5}
    assert half_width(found(clean=0.8, robust=robust), 100) == pytest.approx(0.0962, abs=1e-4)


def test_survey_sees_what_withstands(victim: Victim) -> None:
    """The pilot agrees with the evaluation on all images, as far as 64 of them can."""
    predictor, split = as_torch(victim[0], (1, 8, 8)), load_dataset("digits").test.subset(180)
    source = Surrogate("itself", predictor, "")
    rows = plan(["pgd", "transfer:fgsm", "cw2"], norm="linf", eps=[0.02, 0.1], surrogates=[source])
    seen = survey(predictor, split, rows, batch_size=64)
    assert set(seen.costs) == {None, "itself"}
    assert set(seen.robust) == {(name, "linf", eps) for name in (None, "itself") for eps in (0.02, 0.1)}
    done = evaluate(predictor, split, plan(["pgd"], norm="linf", eps=[0.02, 0.1]), batch_size=128)
    assert seen.clean == pytest.approx(done.clean_accuracy, abs=0.05)
    for eps in (0.02, 0.1):
        share = done.worst_case(eps) / done.clean_accuracy
        assert seen.robust[None, "linf", eps] == pytest.approx(share, abs=4 * np.sqrt(0.25 / PILOT_MOST))
        assert 0 < seen.robust[None, "linf", eps] < 1
    assert seen.robust[None, "linf", 0.1] < seen.robust[None, "linf", 0.02]
    calm = survey(predictor, split, plan(["pgd"], norm="linf", eps=[1e-7]), batch_size=64)
    assert calm.robust[None, "linf", 1e-7] == (PILOT_MOST + 0.5) / (PILOT_MOST + 1)  # not all: that is unknown
    black = survey(replace(predictor, module=None), split, rows[:2], batch_size=128)
    assert black.robust == {}
    assert black.costs[None].backward is None
    assert all(not parameter.requires_grad for parameter in victim[0].parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("600", 600), ("1.5h", 5400), ("1H2M3S", 3723), (" 2m ", 120)],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "ten", "10min", "5m1h", "1e3", "inf", "nan", "m", "٣m", "1 0"])
def test_no_times(text: str) -> None:
    with pytest.raises(UserError, match="--budget must be a time such as 90s, 10m or 1h30m") as caught:
        seconds_of(text)
    assert caught.value.hint == "for example --budget 10m"


def test_the_same_command_goes_on_with_the_same_images(tmp_path: Path) -> None:
    numbers = iter([120, 130, 140, 150])
    choose: Callable[[], int] = lambda: next(numbers)  # noqa: E731
    assert remembered(tmp_path, {"budget": 60, "rows": ("pgd",)}, choose) == 120
    assert remembered(tmp_path, {"budget": 60, "rows": ("pgd",)}, choose) == 120
    assert remembered(tmp_path, {"budget": 90, "rows": ("pgd",)}, choose) == 130
    for damaged in ("", "{}", "[]", '{"question": {"budget": 90, "rows": ["pgd"]}, "n": "all"}'):
        (tmp_path / FILE).write_text(damaged)
        if damaged.endswith('"all"}'):
            assert remembered(tmp_path, {"budget": 90, "rows": ("pgd",)}, choose) == 140
    assert remembered(tmp_path, {"budget": 90, "rows": ("pgd",)}, choose) == 140


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(0, 100), row(0, 100, surrogate=Surrogate("gone", None, "no images"))]
    document = as_document(rows, found(clean=0.5, robust={(None, "linf", 0.1): 0.5}), 1000)
    assert json.loads(json.dumps(document)) == document
    for key in ("seconds", "forward_passes", "backward_passes"):
        assert document[key] == pytest.approx(sum(line[key] for line in document["rows"]))
    plan_table([("a.onnx", document)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["attack", "images", "forward", "passes", "backward", "passes", "time"]
    assert lines[1].startswith(BEFORE)
    assert "will be skipped: no images" in lines[3]
    assert lines[4].split()[:4] == [
        "total",
        "1,000",
        f"{document['forward_passes']:,}",
        f"{document['backward_passes']:,}",
    ]
    assert lines[5] == summary(document)
    assert lines[5] == "1,000 images in about 2 min: shares to ±3.1 points (95 % Wilson interval)"
    plan_table([("a.onnx", document), ("b.onnx", document)])
    assert capsys.readouterr().out.count("b.onnx") == 5
