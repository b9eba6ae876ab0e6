"""The generator against its authors' known answers, and draws that depend on nothing but what they are for."""

import pytest
import torch
from scipy import stats

from dgad_tk.draws import Draws, philox4x32

WORD = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers that come with the authors' Random123 library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox4x32((c0, c1, c2, c3), key)) == expected


def test_a_draw_belongs_to_its_image() -> None:
    """The same whatever the batch, its order and its size."""
    draws = Draws(7)
    whole = draws.normal("attack", (1, 8, 8), index=torch.arange(10), epoch=3)
    part = draws.normal("attack", (1, 8, 8), index=torch.tensor([9, 2]), epoch=3)
    assert torch.equal(part, whole[[9, 2]])


def test_seed_purpose_epoch_and_step_all_count() -> None:
    index = torch.arange(4)
    base = Draws(1).uniform("a", (5,), index=index)
    others = [
        Draws(2).uniform("a", (5,), index=index),
        Draws(1).uniform("b", (5,), index=index),
        Draws(1).uniform("a", (5,), index=index, epoch=1),
        Draws(1).uniform("a", (5,), index=index, step=1),
        Draws(1).uniform("a", (5,), index=index + 4),
    ]
    assert all(not torch.isclose(base, other).any() for other in others)


def test_distributions() -> None:
    draws, index = Draws(0), torch.arange(200)
    uniform = draws.uniform("u", (3, 7, 7), index=index).flatten().numpy()
    normal = draws.normal("n", (3, 7, 7), index=index).flatten().numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01


def test_integers_and_permutation() -> None:
    values = Draws(0).integers("i", (3,), low=-1, high=2, index=torch.arange(3000))
    assert set(values.flatten().tolist()) == {-1, 0, 1}
    assert stats.chisquare(torch.bincount(values.flatten() + 1).numpy()).pvalue > 0.01
    order = Draws(0).permutation("order", 1000, epoch=2)
    assert order.sort().values.equal(torch.arange(1000))
    assert not order.equal(Draws(0).permutation("order", 1000, epoch=3))


def test_no_images_no_draws() -> None:
    assert Draws(0).normal("n", (1, 2, 2), index=torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 2, 2)
