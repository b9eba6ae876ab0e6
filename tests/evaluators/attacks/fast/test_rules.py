"""The rules that end a search, and those of the alarm, on numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from dgad_tk.draws import Draws
from evaluators.attacks.fast.alarm import goes_off, tried
from evaluators.attacks.fast.ascents import LARGEST, SMALLEST, UNTARGETED, Ends, size
from evaluators.attacks.fast.progress import PATIENCE, Progress


def progress(leads: list[float], targets: int = 2) -> Progress:
    clean = torch.tensor(leads)
    every = torch.arange(1, targets + 1).repeat(len(leads), 1)
    return Progress.begin(torch.zeros(len(leads), 1, 2, 2), clean, every)


def ends(*leads: float, broken: tuple[bool, ...] | None = None) -> Ends:
    lead = torch.tensor(leads)
    point = lead.nan_to_num(neginf=-9.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return Ends(torch.tensor(broken or [False] * len(leads)), lead, lead.clone(), point)


def test_the_lowest_of_several_ascents_counts() -> None:
    state = progress([5.0, 4.0])
    image, target = torch.tensor([0, 0, 1, 0]), torch.tensor([1, 2, 2, UNTARGETED])
    state.record(image, target, ends(3.0, 2.5, 4.5, 2.7))
    assert state.lead.tolist() == [2.5, 4.0]  # an ascent that ends higher than the clean image changes nothing
    assert state.point[0].unique().tolist() == [2.5]
    assert state.point[1].unique().tolist() == [0.0]
    assert state.gaps.tolist() == [[3.0, 2.5], [math.inf, 4.5]]
    assert state.nearest(torch.tensor([0, 1]), 0).tolist() == [2, 2]
    assert state.nearest(torch.tensor([0, 1]), 1).tolist() == [1, 1]


def test_a_search_stops_where_its_lead_has_stopped_moving() -> None:
    """Leads of 10 before the restarts. One round: 30 times its gain; two rounds: 8 times what both gained."""
    assert PATIENCE == (30.0, 8.0)
    state = progress([10.0, 10.0, 10.0, 10.0])
    rounds = [
        ([10.0, 9.7, 9.0, 9.0], [True, True, False, False]),  # 9.7 > 30 x 0.3, but 9 < 30 x 1
        ([10.0, 9.7, 8.5, 8.9], [True, True, False, True]),  # 8.5 < 8 x 1.5, but 8.9 > 8 x 1.1
        ([10.0, 9.7, 8.0, 8.9], [True, True, False, True]),  # 8 = 8 x (0.5 + 0.5): not more
        ([10.0, 9.7, 7.7, 8.9], [True, True, True, True]),  # 7.7 > 8 x (0.3 + 0.5)
    ]
    for leads, settled in rounds:
        before, state.lead = state.lead, torch.tensor(leads)
        state.settle(before)
        assert state.settled.tolist() == settled
    assert state.left.tolist() == []


def test_the_runtime_has_the_last_word() -> None:
    """What it refuses has the lead that the runtime gives, from which the next rounds go on: no image is given up."""
    state = progress([2.0, 3.0])
    state.record(torch.tensor([0, 1]), torch.tensor([1, 1]), ends(-math.inf, -math.inf, broken=(True, True)))
    assert state.left.tolist() == []
    state.judge(torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([-0.1, 1e-6]))
    assert state.broken.tolist() == [True, False]
    assert state.left.tolist() == [1]
    assert state.lead.tolist() == [-math.inf, pytest.approx(1e-6)]
    state.settle(torch.tensor([2.0, 3.0]))
    assert state.left.tolist() == [1]


def test_steps_shrink_along_a_cosine() -> None:
    sizes = [size(step, 10) for step in range(10)]
    assert sizes[0] == pytest.approx(LARGEST)
    assert sizes[5] == pytest.approx((LARGEST + SMALLEST) / 2)
    assert sizes == sorted(sizes, reverse=True)
    assert size(10, 10) == pytest.approx(SMALLEST)


@pytest.mark.parametrize(
    ("broken", "by_random", "by_gradients", "expected"),
    [
        ([False] * 10, [2.0] * 10, [1.0] * 10, False),
        ([False] * 9 + [True], [2.0] * 10, [1.0] * 10, True),
        ([False] * 10, [0.5] + [2.0] * 9, [1.0] * 10, False),
        ([False] * 10, [0.5, 0.5] + [2.0] * 8, [1.0] * 10, True),
        ([False] * 10, [1.0] * 10, [1.0] * 10, False),
    ],
)
def test_when_the_alarm_goes_off(
    broken: list[bool], by_random: list[float], by_gradients: list[float], expected: bool
) -> None:
    assert goes_off(torch.tensor(broken), torch.tensor(by_random), torch.tensor(by_gradients)) is expected


@pytest.mark.parametrize(("left", "count"), [(3, 3), (8, 8), (30, 8), (100, 10), (401, 41)])
def test_the_alarm_tries_a_tenth_and_at_least_eight(left: int, count: int) -> None:
    index = torch.arange(left) * 7
    some: Tensor = tried(Draws(0), index)
    assert len(some) == count
    assert len(set(some.tolist())) == count
    # The same images, whatever their order.
    backwards = tried(Draws(0), index.flip(0))
    assert sorted(index.flip(0)[backwards].tolist()) == sorted(index[some].tolist())
