"""What clean answers give away: wrong labels, classes and channels, one answer for all, answers that are no numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import as_torch

from dgad_tk.common import UserError
from dgad_tk.data import Split
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import plan
from evaluators.report.files import results
from evaluators.verdict.checks import check

STEP = 20
"""Grey levels between two classes."""


class Level(nn.Module):
    """Right on every image: class k is grey level STEP k + 10. `order` names the answers anew; `more` are classes that
    are never answered."""

    def __init__(self, order: Sequence[int], *, never: int = 0, nan_above: float = 2.0) -> None:
        super().__init__()
        self.order, self.never, self.nan_above = torch.tensor(order), never, nan_above
        self.scale = nn.Parameter(torch.tensor(1000.0))

    def forward(self, x: Tensor) -> Tensor:
        centres = (STEP * torch.arange(len(self.order)) + 10) / 255
        mean = x.mean(dim=(1, 2, 3))
        logits = -self.scale * (mean[:, None] - centres) ** 2
        found = torch.full((len(x), len(self.order) + self.never), -1e4)
        found = found.index_copy(1, self.order, logits)
        return torch.where(mean[:, None] > self.nan_above, torch.nan, found)


def grey(counts: Sequence[int], shape: tuple[int, int, int] = (1, 4, 4)) -> Split:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.broadcast_to((STEP * labels + 10).astype(np.uint8)[:, None, None, None], (len(labels), *shape))
    return Split(images.copy(), np.arange(len(labels)), labels)


def run(model: nn.Module, split: Split, classes: Sequence[str] = (), **options: Any) -> Evaluation:
    predictor = as_torch(model, split.base.shape[1:])
    return evaluate(predictor, split, plan(["fgsm"], norm="linf", eps=[2 / 255]), classes=classes, **options)


def doubts(evaluation: Evaluation) -> dict[str, str]:
    return {item.name: item.detail for item in check(evaluation).items if item.verdict != "high"}


NAMES = ["ant", "bee", "cat", "dog"]


def test_a_sound_model_raises_no_doubt() -> None:
    evaluation = run(Level(range(4)), grey([10] * 4), NAMES)
    assert evaluation.clean_accuracy == 1
    assert not doubts(evaluation).keys() & {"clean", "finite", "constant", "one answer", "order of classes", "classes"}


def test_two_classes_that_changed_places_are_named() -> None:
    found = doubts(run(Level([0, 1, 3, 2]), grey([10] * 4), NAMES))
    assert "'cat' and 'dog' have changed places" in found["order of classes"]
    assert "40 of 40 images are right instead of 20" in found["order of classes"]


def test_a_class_in_front_and_folders_that_are_sorted_as_text() -> None:
    folders = sorted(map(str, range(12)))
    behind = [int(name) + 1 for name in folders]
    found = doubts(run(Level(behind, never=1), grey([5] * 12), folders))
    assert "one too high" in found["order of classes"]
    assert "'10' is its class 10, sorted as text it is 2" in found["order of classes"]
    assert "order of classes" not in doubts(run(Level(range(12)), grey([5] * 12), folders))


class Colour(nn.Module):
    """Blue, green, red or white by the largest channel; wants its channels in this order or the other."""

    def __init__(self, *, bgr: bool) -> None:
        super().__init__()
        rows = torch.tensor([[-1.0, -1.0, 2.0], [-1.0, 2.0, -1.0], [2.0, -1.0, -1.0], [0.6, 0.6, 0.6]])
        self.weight = nn.Parameter(rows.flip(1) if bgr else rows)
        self.shift = nn.Parameter(torch.tensor([0.0, 0.0, 0.0, -0.2]))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) @ self.weight.T + self.shift


def test_channels_in_the_other_order_are_named() -> None:
    labels = np.repeat(np.arange(4), 5)
    colours = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]])
    levels = np.tile([150, 170, 190, 210, 230], 4)
    images = (levels[:, None] * colours[labels]).astype(np.uint8)[:, :, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    split, names = Split(images, np.arange(20), labels), ["blue", "green", "red", "white"]
    found = doubts(run(Colour(bgr=True), split, names))
    assert "with red and blue exchanged, 10 more of 20" in found["channels"]
    assert "'blue' and 'red' have changed places" in found["order of classes"]
    sound = run(Colour(bgr=False), split, names)
    assert sound.clean_accuracy == 1
    assert not doubts(sound).keys() & {"channels", "order of classes"}


def test_one_answer_for_nearly_all() -> None:
    split = grey([95, 5])
    evaluation = run(Level([0, 1]), split, ["common", "rare"])
    assert "one answer" not in doubts(evaluation)
    split.base[np.flatnonzero(split.labels == 1)[1:]] = 10  # four of the five rare ones look like the common ones
    found = doubts(run(Level([0, 1]), split, ["common", "rare"]))
    assert "the answer 'common' alone would have 95.0%" in found["one answer"]


def test_a_constant_answer_is_named() -> None:
    split = grey([5] * 4)
    split.base[:] = 10 + 2 * STEP
    found = doubts(run(Level(range(4)), split, NAMES))
    assert "every clean image is answered with class 'cat'" in found["constant"]
    assert "25.0% of 20 clean images are right" in found["clean"]


@pytest.mark.parametrize(
    ("right", "n", "classes", "verdict"),
    [
        (21, 200, 10, "unreliable"),  # 10.5 %
        (27, 200, 10, "unreliable"),  # 13.5 %: 9.4 to 18.9
        (30, 200, 10, "high"),  # 15.0 %: 10.7 to 20.6
        (40, 200, 10, "high"),
        (100, 200, 2, "unreliable"),
        (110, 200, 2, "unreliable"),
        (120, 200, 2, "high"),
        (3, 4, 2, "warn"),
        (8, 8, 2, "high"),
        (2, 20, 20, "warn"),
        (0, 50, 100, "unreliable"),
    ],
)
def test_guessing_is_told_by_an_interval(right: int, n: int, classes: int, verdict: str) -> None:
    labels = np.arange(n) % classes
    shown = labels.copy()
    shown[right:] = (labels[right:] + np.arange(n)[right:] // classes % (classes - 1) + 1) % classes
    levels = (shown % classes).astype(np.uint8)
    split = Split(np.broadcast_to(levels[:, None, None, None], (n, 1, 4, 4)).copy(), np.arange(n), labels)

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(100.0))

        def forward(self, x: Tensor) -> Tensor:
            return -self.scale * (x.mean(dim=(1, 2, 3))[:, None] * 255 - torch.arange(classes)) ** 2

    evaluation = run(Table(), split)
    assert int(evaluation.clean_right.sum()) == right
    items = {item.name: item for item in check(evaluation).items}
    assert (items["clean"].verdict if "clean" in items else "high") == verdict


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_an_image_without_a_number_for_an_answer_is_wrong_and_no_more(batch_size: int) -> None:
    split = grey([10] * 4)
    split.base[[0, 17]] = 250  # the first of all, and one in the middle
    evaluation = run(Level(range(4), nan_above=0.9), split, NAMES, batch_size=batch_size)
    assert evaluation.clean_right.sum() == 38
    assert not evaluation.clean_right[[0, 17]].any()
    assert "2 of 40 clean images are answered with logits that are not finite" in doubts(evaluation)["finite"]
    document = results(evaluation, command="", dataset="", split="test")
    assert document.clean.non_finite == 2
    assert document.attacks[0].n == 40


def test_a_model_that_answers_no_image_with_numbers_is_refused() -> None:
    with pytest.raises(UserError, match="answers every clean image with logits that are not finite"):
        run(Level(range(4), nan_above=-1.0), grey([3] * 4))


def test_a_class_that_is_never_right_is_named() -> None:
    split = grey([40] * 4)
    split.base[split.labels == 2] = 10  # cats look like ants
    found = doubts(run(Level(range(4)), split, NAMES))
    assert found["classes"] == "never right on clean images of 'cat' (40 images)"


def test_results_tell_each_class() -> None:
    split = grey([10, 20, 0, 5])
    split.base[np.flatnonzero(split.labels == 1)[:8]] = 10
    evaluation = run(Level(range(4)), split, NAMES)
    document = results(evaluation, command="", dataset="", split="test")
    assert document.to_dict()["clean"]["classes"] == [
        {"class": "ant", "n": 10, "correct": 10},
        {"class": "bee", "n": 20, "correct": 12},
        {"class": "dog", "n": 5, "correct": 5},
    ]
    assert [(row.class_, row.n) for row in document.worst_case[0].classes] == [
        ("ant", 10),
        ("bee", 20),
        ("dog", 5),
    ]
    assert sum(row.right for row in document.worst_case[0].classes) == document.worst_case[0].robust


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_of_no_class_is_refused(label: int) -> None:
    split = grey([3] * 4)
    split.labels[5] = label
    with pytest.raises(UserError, match=f"the model has 4 classes, the dataset has a label {label}"):
        run(Level(range(4)), split)
