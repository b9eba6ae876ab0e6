"""What an evaluation will cost: forecast with a clock that is ours, and compared with what it then did cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import Slow, Watch
from shared import Victim
from victims import as_torch, linear_split

from cli.flags.budget import FILE, remember, remembered, seconds_of
from cli.printing.plan import plan_table, summary
from dgad_tk.common import UserError
from dgad_tk.data import load_dataset
from evaluators.engine import pilot as pilot_module
from evaluators.engine.evaluate import evaluate
from evaluators.engine.forecast import Forecast, RowForecast
from evaluators.engine.pilot import BEFORE, FEWEST, GROWTH, MOST, pilot
from evaluators.plan.rows import Surrogate, plan

module: Any = pilot_module


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr("time.perf_counter", found)
    return found


def forecast(*rows: RowForecast, step: int = 10, processes: int = 1, shares: tuple[float, ...] = (1.0,)) -> Forecast:
    return Forecast(rows, shares, 64, step, 500, processes)


@pytest.mark.parametrize("quick", [False, True])
def test_the_forecast_is_what_it_then_costs(quick: bool, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """To some per cent. Of a slow model there are two runs of few images, which tell less of the checks."""
    if quick:
        monkeypatch.setattr(module, "SECONDS", 1e9)
    predictor, split = as_torch(Slow(watch)), linear_split(1200)
    rows = plan(["fgsm", "pgd"], norm="linf", eps=[0.01, 0.1], settings={"pgd": {"steps": 7}})
    seen = pilot(predictor, split, rows, batch_size=16)
    assert seen.images == (MOST if quick else GROWTH * FEWEST)
    assert [row.id for row in seen.rows] == [BEFORE, "fgsm@0.01", "fgsm@0.1", "pgd@0.01", "pgd@0.1"]
    begun = watch.now
    done = evaluate(predictor, split, rows, batch_size=16)
    assert seen.seconds(1200) == pytest.approx(watch.now - begun, rel=0.05 if quick else 0.35)
    for row, outcome in zip(seen.rows[1:], done.outcomes, strict=True):
        assert outcome.unit is not None
        assert row.seconds(1200) == pytest.approx(outcome.unit.seconds, rel=0.07 if quick else 0.5)


def test_a_real_model(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of row has its seconds or says why not."""
    monkeypatch.setattr(module, "SECONDS", 0.0)
    predictor, split = as_torch(victim[0], (1, 8, 8)), load_dataset("digits").test.subset(40)
    sources = [Surrogate("itself", predictor), Surrogate("gone", None, "no images")]
    names = ["pgd", "transfer:fgsm", "square", "art:simba"]
    settings = {"square": {"queries": 20}, "art:simba": {"samples": 5, "max_iter": 50}}
    rows = plan(names, norm="linf", eps=[0.02, 0.1], surrogates=sources, settings=settings)
    seen = pilot(predictor, split, rows, batch_size=64)
    notes = {row.id: row.note for row in seen.rows if row.note}
    assert notes == {f"transfer:gone:fgsm@{eps}": "skipped: no images" for eps in ("0.02", "0.1")}
    assert all((row.seconds(40) > 0) == (row.id not in notes) for row in seen.rows)
    slow = next(row for row in seen.rows if row.id == "art:simba")
    assert slow.images(40) == 5
    assert slow.seconds(40) == slow.seconds(5)
    assert len(seen.shares) == 3
    assert seen.shares[0] >= seen.shares[1] >= seen.shares[2]
    assert 0 < seen.half_width(40) < 0.2
    black = pilot(replace(predictor, module=None), split, rows[:2], batch_size=64)
    assert all("has no gradients" in row.note for row in black.rows[1:])
    assert black.shares == seen.shares[:1]


def test_two_times_that_are_noise() -> None:
    """A large run no slower than a small one does not make images free, nor what is before them cost less than 0."""
    assert module._line([(8, 2.0), (32, 5.0)]) == (1.0, 1 / 8)
    assert module._line([(8, 9.0), (8, 2.0), (32, 5.0)]) == (1.0, 1 / 8)
    assert module._line([(8, 2.0), (32, 1.0)]) == pytest.approx((0.95, 0.05 / 32))
    assert module._line([(8, 0.1), (32, 2.0)]) == (0.0, 2.0 / 32)
    assert module._line([(8, 2.0), (10, 2.5), (10, 3.0)]) == (0.0, 0.3)  # a row of ten images
    assert module._line([(8, 2.0)]) == (0.0, 0.25)


def test_a_chunk_costs_what_the_first_does() -> None:
    row = RowForecast("it", chunk=10.0, image=0.5)
    assert [row.seconds(n) for n in (1, 500, 501, 1000)] == [10.5, 260.0, 270.5, 520.0]
    assert RowForecast("it", chunk=10.0, image=0.5, limit=50).seconds(1000) == 35.0
    assert RowForecast("it", note="skipped: no images").seconds(1000) == 0


def test_the_budget_buys_as_many_images_as_fit() -> None:
    there = forecast(RowForecast(BEFORE, once=4.5), RowForecast("it", image=1.0))
    for budget in (14.6, 100.0, 1234.5, 1e9):
        n = there.affordable(budget, 2345)
        assert n in {*range(10, 2345, 10), 2345}
        assert there.seconds(n) <= budget
        assert n == 2345 or there.seconds(n + 10) > budget
    assert there.affordable(1e9, 3) == 3
    assert replace(there, processes=2).affordable(350, 2345) > 1.9 * there.affordable(350, 2345)
    with pytest.raises(UserError, match="a budget of 5 s is too little: 10 images take about 15 s"):
        there.affordable(5, 2345)


def test_half_width_is_wilsons() -> None:
    """50 of 100: 40.4 % to 59.6 % (Newcombe, Statistics in Medicine 17, 1998, and every table since)."""
    assert forecast(shares=(0.5,)).half_width(100) == pytest.approx(0.0962, abs=1e-4)
    assert forecast(shares=(0.8, 0.5, 0.008)).half_width(100) == pytest.approx(0.0962, abs=1e-4)


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
    question: dict[str, Any] = {"budget": 60, "rows": ("pgd",)}
    assert remembered(tmp_path, question) is None
    remember(tmp_path, question, 120)
    assert remembered(tmp_path, question) == 120
    assert remembered(tmp_path, {**question, "budget": 90}) is None
    for damaged in ("", "{}", "[]", '{"question": {"budget": 60, "rows": ["pgd"]}, "n": "all"}'):
        (tmp_path / FILE).write_text(damaged)
        assert remembered(tmp_path, question) is None


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = RowForecast(BEFORE, image=0.001), RowForecast("it", image=0.119), RowForecast("gone", note="skipped: no")
    there = forecast(*rows, shares=(0.5, 0.25))
    document = there.to_dict(1000)
    assert json.loads(json.dumps(document)) == document
    assert document["seconds"] == pytest.approx(sum(line["seconds"] for line in document["rows"])) == pytest.approx(120)
    plan_table([(Path("a.onnx"), there, 1000)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "attack", "images", "time"]
    assert [line.split()[1] for line in lines[1:4]] == [BEFORE.split()[0], "it", "total"]
    assert lines[3].split()[:3] == ["a.onnx", "total", "1,000"]
    assert lines[4] == "a.onnx: gone skipped: no"
    assert lines[5] == f"a.onnx: {summary(there, 1000)}"
    assert summary(there, 1000) == (
        "1,000 images in about 2 min, extrapolated from 64: shares to ±3.1 points (95 % Wilson interval)"
    )
    plan_table([(Path("a.onnx"), there, 1000), (Path("b.onnx"), there, 1000)])
    assert capsys.readouterr().out.count("b.onnx") == 5
