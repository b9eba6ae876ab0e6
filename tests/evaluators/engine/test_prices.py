"""Dear attacks are priced by their passes: the passes against counted ones, the price against a clock that is ours."""

from dataclasses import replace
from typing import Any

import pytest
from clocks import Slow, Watch
from shared import Victim
from victims import TwoClassLinear, as_torch, linear_split

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split, load_dataset
from evaluators.attacks import ATTACKS
from evaluators.engine import prices
from evaluators.engine.evaluate import evaluate
from evaluators.engine.forecast import Forecast, Offer, RowForecast
from evaluators.engine.pilot import FEWEST, pilot
from evaluators.engine.prices import Price, passes_of, price_of
from evaluators.plan.choices import CHOICES, WIDE, choices_in, recommended
from evaluators.plan.rows import plan

FEW: dict[str, dict[str, Any]] = {
    "cw2": {"max_iter": 20, "binary_search_steps": 2},
    "cw2-paper": {"max_iter": 30},
    **{key: {"steps": 12} for key in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t")},
}
OPEN = ("autoattack", "autoattack-fast", "autoattack-plus", "autoattack-rand", "autoattack-max", "square")
"""Ensembles take seconds, and Square skips proposals that change nothing: see `docs/measurements.md` for these."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr("time.perf_counter", found)
    return found


@pytest.mark.parametrize("name", [name for name, spec in ATTACKS.items() if spec.passes and name not in OPEN])
def test_passes_are_those_that_are_counted(name: str, victim: Victim) -> None:
    """Of images that do not break, at a radius at which none does; what is besides is a few per cent."""
    predictor, split = as_torch(victim[0], (1, 8, 8)), load_dataset("digits").test.subset(12)
    norm: Norm = ATTACKS[name].norms[0]
    (row,) = plan([name], norm=norm, eps=[1e-6], settings={name: FEW[name]})
    unit = evaluate(predictor, split, [row], batch_size=64).outcomes[0].unit
    assert unit is not None
    held = int(unit.attacked.sum()) if row.eps is None else int((unit.attacked & ~unit.broken).sum())
    expected = passes_of(row.spec, row.params, norm, predictor)
    assert expected is not None
    assert unit.backward_passes == pytest.approx(held * expected.gradients, rel=0.05)
    asked = unit.forward_passes - unit.backward_passes
    assert asked == pytest.approx(held * expected.forwards, rel=0.05, abs=12 * held)


def test_standard_autoattack_is_the_sum_of_its_stages(victim: Victim) -> None:
    """100 steps of APGD-CE, 9 targets of 100 of APGD-T, the same of FAB-T with an answer each, and 5,000 queries."""
    predictor = as_torch(victim[0], (1, 8, 8))
    spec = ATTACKS["autoattack"]
    found = passes_of(spec, {}, "linf", predictor)
    assert found is not None
    assert (found.forwards, found.gradients) == (900 + 5000, 100 + 900 + 900)
    few = passes_of(spec, {}, "linf", replace(predictor, classes=4))
    assert few is not None
    assert (few.forwards, few.gradients) == (300 + 5000, 100 + 300 + 300)
    assert passes_of(spec, {}, "linf", replace(predictor, module=None)) is None


def test_a_dear_row_is_priced_and_not_run(watch: Watch) -> None:
    """A pass takes 0.5 s a batch and 0.25 s an image, so 100 steps on 8 images would take minutes."""
    predictor, split = as_torch(Slow(watch)), linear_split(40)
    assert price_of(predictor, split, 16, FEWEST).few == (0.5 + 0.25 * FEWEST,) * 2
    rows = plan(["fgsm", "apgd-ce"], norm="linf", eps=[0.001])
    seen = pilot(predictor, split, rows, batch_size=16, threat=("linf", [0.001]))
    _, fgsm, dear = seen.rows
    assert (fgsm.rough, dear.rough) == (False, True)
    done = evaluate(predictor, split, rows[1:], batch_size=16)
    (outcome,) = done.outcomes
    assert outcome.unit is not None
    assert dear.seconds(40) == pytest.approx(outcome.unit.seconds, rel=0.4)
    assert [offer.name for offer in seen.offers] == list(choices_in("linf", 2))
    assert seen.to_dict(40)["choices"][0]["ask"] == "--suite quick"


def test_a_norm_that_no_choice_has_is_forecast_without_offers() -> None:
    rows = plan(["fmn"], norm="l0", eps=[5.0], settings={"fmn": {"steps": 3}})
    seen = pilot(as_torch(TwoClassLinear()), linear_split(8), rows, batch_size=8, threat=("l0", [5.0]))
    assert [row.id for row in seen.rows][1:] == ["fmn"]
    assert seen.offers == ()


def test_a_choice_that_was_asked_for_costs_what_it_was_found_to_cost(watch: Watch) -> None:
    """At every radius that would be asked, and with the settings that the choice has."""
    predictor, split = as_torch(Slow(watch)), linear_split(40)
    for radii, names, priced in [([0.001], ["autoattack"], False), ([0.001, 0.002], ["fgsm", "apgd-ce"], True)]:
        asked = plan(names, norm="linf", eps=radii)
        seen = pilot(predictor, split, asked, batch_size=16, threat=("linf", radii))
        standard = next(offer for offer in seen.offers if offer.name == "standard")
        assert (standard.image > 0) == priced
        assert (seen.offered(standard, 40) == seen.seconds(40)) == (not priced)
        assert standard.rough
        quick = next(offer for offer in seen.offers if offer.name == "quick")
        assert len(quick.rows) == (len(radii) if "fgsm" in names else 0)


def test_choices_get_dearer_and_say_what_they_are(victim: Victim) -> None:
    """Each is there in the norms of its attacks; L1 has no fast one."""
    predictor = as_torch(victim[0], (1, 8, 8))
    passes = []
    for choice in CHOICES.values():
        found = [passes_of(ATTACKS[name], ATTACKS[name].params, "linf", predictor) for name in choice.attacks]
        passes.append(sum(each.all for each in found if each))
        assert choice.says
        assert choice.blind
    assert passes == sorted(passes)
    assert 10 * passes[0] < passes[1]
    assert "quick" not in choices_in("l1", 10)
    assert list(choices_in("linf", 10)) == ["quick", "standard", "max"]


def test_what_is_recommended_within_a_time() -> None:
    """The strongest that sees all; else the strongest that is sure enough; else the one that sees most."""
    assert recommended([1000, 1000, 1000], [0.03] * 3, 1000) == 2
    assert recommended([1000, 1000, 300], [0.03, 0.03, 0.06], 1000) == 1
    assert recommended([900, 400, 100], [0.03, WIDE, 0.1], 1000) == 1
    assert recommended([100, 50, 10], [0.1, 0.13, 0.3], 1000) == 0
    assert recommended([0, 0, 0], [1.0, 1.0, 1.0], 1000) is None


def test_the_time_buys_images_of_an_offer() -> None:
    offers = tuple(
        Offer(name, CHOICES[name], 1, image) for name, image in (("quick", 0.1), ("standard", 1.0), ("max", 5.0))
    )
    there = Forecast((RowForecast("before", once=2.0),), (0.5,), 64, 10, 500, 1, offers, 1000)
    assert [there.within(offer, 102.0) for offer in offers] == [1000, 100, 20]
    advice = there.recommended(102.0)
    assert advice is not None
    assert (advice[0].name, advice[1]) == ("quick", 1000)
    told = there.to_dict(10, 102.0)
    assert told["recommended"] == "quick"
    assert [each["images"] for each in told["choices"]] == [1000, 100, 20]
    assert [each["seconds"] for each in told["choices"]] == pytest.approx([102.0, 102.0, 102.0])
    assert [each["half_width"] for each in told["choices"]] == [there.half_width(n) for n in (1000, 100, 20)]
    assert [each["images"] for each in there.to_dict(10)["choices"]] == [10, 10, 10]
    assert there.to_dict(10, 1.0)["choices"][0]["seconds"] is None
    asked = replace(offers[0], image=0.0, rows=(RowForecast("pgd", image=0.2), RowForecast("square", chunk=3.0)))
    assert (there.offered(asked, 500), asked.rough, offers[0].rough) == (2.0 + 100.0 + 3.0, False, True)
    assert there.recommended(1.0) is None
    assert there.to_dict(10)["recommended"] is None


def test_all_processes_look_at_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader's time decides how many, or processes would wait for each other's images in vain."""
    monkeypatch.setattr(prices, "leaders", lambda count: 11)
    seen: list[int] = []

    def looks(predictor: Predictor, part: Split, *more: Any, **named: Any) -> Any:
        seen.append(len(part))
        return evaluate(predictor, part, *more, **named)

    monkeypatch.setattr(prices, "evaluate", looks)
    price = Price(1e-6, 1e-6, (1e-6, 1e-6))
    prices.shares_left(as_torch(TwoClassLinear()), linear_split(40), "linf", [0.01], price, batch_size=16, seed=0)
    assert seen == [11]
