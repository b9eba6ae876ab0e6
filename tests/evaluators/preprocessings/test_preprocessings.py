"""Candidates are tried on classifiers whose preprocessing is known: the right one leads, and no more is claimed."""

import numpy as np
import pytest
import torch
from colours import CLASSES, SIZE, Nearest, colour_split
from torch import Tensor, nn

from dgad_tk.answers.doubts import right_at_best
from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.data import Split
from evaluators.preprocessings.finding import Finding, find
from evaluators.preprocessings.table import PREPROCESSINGS, Candidate, candidates, exchanged
from evaluators.preprocessings.trial import FIRST, Trial, try_all
from evaluators.preprocessings.words import name_of, sentences

NAMES = [f"colour{k:02}" for k in range(CLASSES)]
SHAPE = (3, SIZE, SIZE)


def never(interface: Interface) -> Predictor:
    raise AssertionError("opened again")


def trials_of(module: nn.Module, split: Split, names: list[str] = NAMES) -> tuple[Predictor, list[Trial]]:
    predictor = predictor_of_module(module, split.base.shape[1:], format="torchscript")
    return predictor, try_all(predictor, candidates(split.base.shape[1]), split, names, reopen=never)


def found(module: nn.Module, split: Split | None = None, names: list[str] = NAMES) -> Finding:
    split = split or colour_split()
    predictor, trials = trials_of(module, split, names)
    return find(trials, split.labels, names, predictor.classes)


def said(finding: Finding) -> str:
    return "\n".join(sentences(finding, channels=3, own=False, eight_bits=False))


@pytest.mark.parametrize("candidate", candidates(3), ids=lambda each: f"{each.name} {each.interface.channel_order}")
def test_every_preprocessing_is_found(candidate: Candidate) -> None:
    """ImageNet's and CIFAR-10's are so near to each other that they may be tied; with no other."""
    finding = found(Nearest(candidate.interface))
    assert finding.verdict in ("found", "tied")
    assert candidate in [row.candidate for row in finding.leading]
    orders = {row.candidate.interface.channel_order for row in finding.leading}
    assert orders == {candidate.interface.channel_order}
    near = {name for name in PREPROCESSINGS if name.startswith(("ImageNet", "CIFAR"))}
    family = near if candidate.name in near else {candidate.name}
    assert {row.candidate.name for row in finding.leading} <= family
    assert finding.rows[0].accuracy > 0.9
    assert not finding.low


def test_a_winner_is_said_to_be_one_and_its_flags_give_its_accuracy() -> None:
    finding = found(Nearest(PREPROCESSINGS["Caffe"].interface))
    assert finding.verdict == "found"
    assert "'Caffe' fits best: " in said(finding)
    best = finding.rows[0]
    split = colour_split()
    opened = predictor_of_module(
        Nearest(PREPROCESSINGS["Caffe"].interface), SHAPE, format="torchscript", interface=best.candidate.interface
    )
    answers = opened.predict(np.float32(split.take(slice(0, len(split))) / np.float32(255))).argmax(axis=1)
    assert best.correct == int((answers == split.labels).sum())
    assert best.n == len(split)


def test_rows_are_dropped_only_when_they_cannot_win() -> None:
    """Trying everything on everything has the same best row, and costs several times as much."""
    module, split = Nearest(PREPROCESSINGS["ImageNet"].interface), colour_split()
    _, trials = trials_of(module, split)
    assert sum(len(trial.answers) for trial in trials) < len(trials) * len(split) / 2
    assert min(len(trial.answers) for trial in trials) == FIRST
    finding = find(trials, split.labels, NAMES, CLASSES)
    for row in finding.rows:
        whole = predictor_of_module(module, SHAPE, format="torchscript", interface=row.candidate.interface)
        answers = whole.predict(np.float32(split.take(slice(0, len(split))) / np.float32(255))).argmax(axis=1)
        assert (answers[: row.n] == row.answers).all()
        if row.n < len(split):
            assert right_at_best(split.labels, answers, NAMES).sum() < finding.rows[0].correct


def test_what_gives_the_same_answers_is_tied() -> None:
    """A network that sees no colours answers blue, green, red as it answers red, green, blue."""
    shades = np.uint8(np.linspace(0, 255, 6)).repeat(40)
    order = np.random.default_rng(0).permutation(240)
    images = np.broadcast_to(shades[order, None, None, None], (240, *SHAPE)).copy()
    split = Split(images, np.arange(240), (np.arange(240) // 40)[order])
    finding = found(Inside(PREPROCESSINGS["range -1 to 1"].interface), split, [str(k) for k in range(6)])
    assert finding.verdict == "tied"
    assert finding.alike
    assert [name_of(row) for row in finding.leading] == ["range -1 to 1", "range -1 to 1, BGR"]
    assert (
        "cannot tell between 'range -1 to 1' and 'range -1 to 1, BGR': of 240 images, they get the same answers"
        in said(finding)
    )
    assert "attacks can come out differently with them" in said(finding)


def test_of_many_rows_that_are_tied_the_sentence_names_four() -> None:
    split = colour_split()
    predictor = predictor_of_module(Nearest(AS_IS), split.base.shape[1:], format="torchscript")
    trials = try_all(predictor, [Candidate(name, AS_IS) for name in PREPROCESSINGS], split, NAMES, reopen=never)
    told = said(find(trials, split.labels, NAMES, CLASSES))
    assert len(PREPROCESSINGS) == 9
    assert "cannot tell between 'as is', 'ImageNet', 'CIFAR-10', 'CIFAR-10, std of images' and 5 more: of" in told


def test_images_of_one_class_tell_no_preprocessing() -> None:
    split = colour_split()
    (there,) = np.nonzero(split.labels == 3)
    finding = found(Nearest(AS_IS), Split(split.base, split.index[there], split.labels[there]))
    assert finding.verdict == "none"
    assert "images of one class alone tell no preprocessing" in said(finding)
    assert "no preprocessing fits" not in said(finding)


def test_two_thirds_of_two_classes_are_little() -> None:
    """Above one half by more than chance, and less than half of the way from guessing to all."""
    labels = np.arange(300) % 2
    answers = np.where(np.arange(300) % 3 == 0, 1 - labels, labels)
    finding = find([Trial(Candidate("as is", AS_IS), answers)], labels, ["no", "yes"], 2)
    assert (finding.verdict, finding.rows[0].correct, finding.low) == ("found", 200, True)
    assert "more than guessing (50.0%) and still little" in said(finding)
    assert "rows and columns are exchanged" in said(finding)


class Inside(nn.Module):
    """Six shades, as a preprocessing makes them of the same grey in all channels; no channel differs from another."""

    def __init__(self, interface: Interface) -> None:
        super().__init__()
        grey = torch.linspace(0, 1, 6).reshape(6, 1, 1, 1).expand(6, 3, 1, 1)
        self.levels = nn.Buffer(interface.preprocessing(3)(grey).mean(dim=(1, 2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return -((x.mean(dim=(1, 2, 3))[:, None] - self.levels) ** 2)


def test_a_file_that_nothing_fits() -> None:
    """A network that was never trained, and one that knows another task: what guessing gives is said beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES))
    finding = found(untrained)
    assert finding.verdict == "none"
    assert finding.leading == [finding.rows[0]]
    assert "no preprocessing fits: of 16 preprocessings the best" in said(finding)
    assert "guessing gets 8.6%" in said(finding)
    assert "another task" in said(finding)
    assert max(row.n for row in finding.rows) == 128  # the end of the round in which each class has six images

    split = colour_split()
    shuffled = Split(split.base, split.index, np.random.default_rng(1).permutation(split.labels))
    assert found(Nearest(AS_IS), shuffled).verdict == "none"


def test_the_share_of_the_largest_class_is_guessing() -> None:
    labels = np.where(np.arange(200) % 10 == 0, 1, 0)
    split = Split(np.full((200, *SHAPE), 90, np.uint8), np.arange(200), labels)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)

    finding = found(Constant(), split, ["often", "rare"])
    assert finding.verdict == "none"
    best = finding.rows[0]
    assert best.n == 64  # no better than guessing: given up
    assert best.accuracy == finding.guessing == float((labels[:64] == 0).mean())


def test_of_few_images_nothing_is_claimed() -> None:
    split = colour_split().subset(5)
    finding = found(Nearest(AS_IS), split)
    told = said(finding)
    assert finding.verdict == "tied" or told.startswith("too few images to tell")
    assert "fits best" not in told
    assert "no preprocessing fits" not in told


NUMBERED = sorted(map(str, range(CLASSES)))
"""Folders 0 to 11 as text sorts them: '10' is label 2."""


@pytest.mark.parametrize("in_front", [0, 1])
@pytest.mark.parametrize("name", ["as is", "CIFAR-10", "Caffe"])
def test_the_order_of_classes_is_found_with_the_preprocessing(name: str, in_front: int) -> None:
    split = colour_split()
    labels = np.array([NUMBERED.index(str(k)) for k in split.labels])
    finding = found(Nearest(PREPROCESSINGS[name].interface, in_front), Split(split.base, split.index, labels), NUMBERED)
    best = finding.rows[0]
    assert finding.verdict in ("found", "tied")
    assert name in {row.candidate.name for row in finding.leading}
    assert best.order is not None
    assert best.accuracy > 0.9
    expected = ["background"] * in_front + [str(k) for k in range(CLASSES)]
    assert list(best.order.classes) == expected


def test_an_arbitrary_order_is_found_and_its_rows_are_dropped_early() -> None:
    moved = np.random.default_rng(3).permutation(CLASSES)
    split = colour_split()
    shuffled = Split(split.base, split.index, moved[split.labels])
    _, trials = trials_of(Nearest(PREPROCESSINGS["Caffe"].interface), shuffled)
    finding = find(trials, shuffled.labels, NAMES, CLASSES)
    assert name_of(finding.rows[0]) == "Caffe"
    order = finding.rows[0].order
    assert order is not None
    assert list(order.classes) == [NAMES[k] for k in moved]
    assert sum(len(trial.answers) for trial in trials) < len(trials) * len(split) / 2


def test_blue_and_red_are_channels_before_they_are_classes() -> None:
    """Fed red first, a file that wants blue first seems to have two classes exchanged. Nobody's folders are."""
    assert candidates(3)[0].interface == AS_IS
    colours = np.uint8([[200, 20, 20], [20, 200, 20], [20, 20, 200]]).repeat(60, axis=0)
    draws = np.random.default_rng(0)
    order = draws.permutation(180)
    images = np.broadcast_to(colours[order, :, None, None], (180, *SHAPE)).copy()
    images = np.uint8(images + draws.integers(-20, 50, images.shape))
    split = Split(images, np.arange(180), (np.arange(180) // 60)[order])

    class Blue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3)).flip(1)

    finding = found(Blue(), split, ["red", "green", "blue"])
    best = finding.rows[0]
    assert best.order is None
    assert best.candidate.interface.channel_order == "bgr"
    assert best.accuracy == 1.0
    assert {row.candidate.interface.channel_order for row in finding.leading} == {"bgr"}


def test_what_is_tried_on_grey_images() -> None:
    tried = {each.name for each in candidates(1)}
    assert {"as is", "range -1 to 1", "range 0 to 255", "MNIST"} <= tried
    assert tried.isdisjoint({"ImageNet", "CIFAR-10", "Caffe"})
    assert {each.interface.channel_order for each in candidates(1)} == {"rgb"}
    assert "MNIST" not in {each.name for each in candidates(3)}


def test_each_candidate_gives_a_file_other_numbers() -> None:
    for channels in (1, 3):
        images = torch.rand(4, channels, 2, 2, generator=torch.Generator().manual_seed(0))
        prepared = [each.interface.preprocessing(channels)(images) for each in candidates(channels)]
        for at, one in enumerate(prepared):
            assert not any(torch.allclose(one, other, atol=1e-4) for other in prepared[:at])


def test_exchanged_channels_keep_their_own_mean() -> None:
    """Fed colours in the other order, each colour still loses its own mean: only the order differs."""
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for row in candidates(3):
        other = exchanged(row.interface)
        assert torch.equal(other.preprocessing(3)(images), row.interface.preprocessing(3)(images).flip(1))
        assert exchanged(other) == row.interface


def test_answers_that_are_no_numbers_are_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), CLASSES), torch.nan)

    finding = found(Broken())
    assert finding.verdict == "none"
    assert all(row.correct == 0 for row in finding.rows)


def test_progress_grows_to_the_end() -> None:
    seen: list[tuple[int, int, int]] = []
    split = colour_split()
    predictor = predictor_of_module(Nearest(AS_IS), SHAPE, format="torchscript")
    try_all(predictor, candidates(3), split, NAMES, reopen=never, on_progress=lambda *each: seen.append(each))
    done = [each[0] for each in seen]
    assert done == sorted(done)
    assert done[-1] == len(split)
    assert seen[0][2] == len(candidates(3)) > seen[-1][2]
