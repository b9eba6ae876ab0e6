"""The comparison of an exported file with its source: what it looks at, and what it cannot be fooled by."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shared import Victim, artifact
from torch import nn

from dgad_tk.models import build_model
from exporters.parity.divergence import Call, Value, first_divergence
from exporters.parity.verify import EXACT, HALF, QUANTISED, SourceAnswers, Tolerance, ask_source, compare_logits, verify

Predict = Callable[[np.ndarray], np.ndarray]


def runs(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def exported(predict: Predict) -> Any:
    return SimpleNamespace(predict=predict)


@pytest.fixture
def asked(victim: Victim) -> SourceAnswers:
    net, images, _ = victim
    return ask_source(net, artifact(), images)


def test_the_probes(victim: Victim, asked: SourceAnswers) -> None:
    net, images, _ = victim
    assert list(asked.images) == ["clean", "pgd", "noise", "black", "white"]
    assert np.array_equal(asked.images["clean"], images)
    pgd = asked.images["pgd"]
    assert np.abs(pgd - images).max() == pytest.approx(0.15, abs=1e-6)  # the record's eps
    assert 0 <= pgd.min() <= pgd.max() <= 1
    assert (runs(net, pgd).argmax(1) != runs(net, images).argmax(1)).mean() > 0.2
    assert [(each.min(), each.max()) for each in (asked.images["black"], asked.images["white"])] == [(0, 0), (1, 1)]
    for name, each in asked.images.items():
        assert np.abs(asked.logits[name] - runs(net, each)).max() < 1e-5


def test_without_images_there_is_noise(victim: Victim) -> None:
    net, images, _ = victim
    asked = ask_source(net, artifact(), None)
    assert list(asked.images) == ["noise", "pgd", "black", "white"]
    assert np.abs(asked.images["pgd"] - asked.images["noise"]).max() == pytest.approx(0.15, abs=1e-6)
    with pytest.raises(ValueError, match="at least 10 images, got 9"):
        ask_source(net, artifact(), images[:9])


def test_the_source_itself_passes_at_every_batch_size(victim: Victim, asked: SourceAnswers) -> None:
    sizes: list[int] = []

    def predict(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return runs(victim[0], images)

    parity = verify(asked, exported(predict), EXACT)
    assert parity.passed
    assert sizes == [1, 2, 7, 38, 1, 2, 7, 38] + 3 * [1, 2, 7]
    assert parity.adversarial > 10
    assert (parity.survival, parity.sets["pgd"].agreement, parity.sets["clean"].compared) == (1.0, 1.0, 48)
    assert parity.as_dict()["sets"]["black"]["compared"] == 10


def test_what_differs_is_said(victim: Victim, asked: SourceAnswers) -> None:
    net = victim[0]

    def brighter(images: np.ndarray) -> np.ndarray:
        """Wrong on white images only."""
        return runs(net, images) + np.float32(0.5) * (images.min() == 1)

    parity = verify(asked, exported(brighter), EXACT)
    (failure,) = parity.failures
    assert failure.startswith("on white images logits differ by up to 0.5, ")
    assert parity.worst == "white"
    assert parity.sets["white"].mean_abs_diff == pytest.approx(0.5)
    assert parity.sets["clean"].max_abs_diff < 1e-5
    # Where logits differ by design, the predictions on images speak for the file.
    assert verify(asked, exported(brighter), QUANTISED).passed


def test_a_file_that_undoes_the_attack_does_not_pass(victim: Victim, asked: SourceAnswers) -> None:
    """Right on clean images; on adversarial ones it answers as if they were clean."""
    clean, pgd = asked.images["clean"], asked.images["pgd"]

    def hides(images: np.ndarray) -> np.ndarray:
        known = {image.tobytes(): index for index, image in enumerate(pgd)}
        return runs(victim[0], np.stack([clean[known[i.tobytes()]] if i.tobytes() in known else i for i in images]))

    parity = verify(asked, exported(hides), QUANTISED)
    assert (parity.survival, parity.sets["clean"].agreement) == (0.0, 1.0)
    assert parity.failures[-1] == f"0.0% of {parity.adversarial} adversarial examples stay adversarial, expected 90%"


def test_a_batch_that_is_fixed_is_noticed(victim: Victim, asked: SourceAnswers) -> None:
    """A trace that froze the batch size answers for other sizes with something else."""
    frozen = exported(lambda images: runs(victim[0], np.repeat(images[:1], len(images), axis=0)))
    assert not verify(asked, frozen, EXACT).passed
    assert not verify(asked, frozen, QUANTISED).passed


@pytest.mark.parametrize("tolerance", [EXACT, HALF, QUANTISED])
def test_what_is_no_number_never_passes(victim: Victim, asked: SourceAnswers, tolerance: Tolerance) -> None:
    def broken(images: np.ndarray) -> np.ndarray:
        logits = runs(victim[0], images)
        return np.where(images.max() < 1, np.float32(np.nan), logits)

    parity = verify(asked, exported(broken), tolerance)
    assert not parity.passed
    assert parity.worst in ("clean", "noise", "black", "pgd")
    assert not verify(asked, exported(lambda images: runs(victim[0], images)[:, :9]), tolerance).passed


def test_logits_that_are_compared() -> None:
    logits = np.array([[2.0, 1.0], [1.0, 1.00001]], dtype=np.float32)
    assert compare_logits(logits, logits).agreement == 1
    # The second image is a tie: its prediction may differ.
    moved = compare_logits(logits, logits + np.float32([[0, 0], [2e-5, 0]]))
    assert (moved.agreement, moved.compared) == (1.0, 2)
    assert moved.max_abs_diff == pytest.approx(2e-5, rel=0.01)
    assert moved.mean_abs_diff == pytest.approx(5e-6, rel=0.01)
    assert moved.relative == pytest.approx(4e-5, rel=0.01)  # over the median of both spreads, 1 and 1e-5
    assert compare_logits(logits, logits[:, ::-1]).agreement == 0
    assert np.isnan(compare_logits(logits, logits[:1]).relative)


def drawn(seed: int, images: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, 10))


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-12, 1e-30, 1e6])
def test_logits_are_compared_alike_at_any_scale(scale: float) -> None:
    logits, other = drawn(0), drawn(1)
    unrelated = compare_logits(np.float32(scale * logits), np.float32(scale * other))
    assert unrelated.agreement < 0.3
    assert unrelated.relative > 0.5
    near = compare_logits(np.float32(scale * logits), np.float32(scale * (logits + 1e-5 * other)))
    plain = compare_logits(np.float32(logits), np.float32(logits + 1e-5 * other))
    assert near.agreement == 1
    assert near.relative == pytest.approx(plain.relative, rel=0.05)
    assert near.relative < EXACT.relative  # type: ignore[operator]


def test_a_common_offset_does_not_make_logits_equal() -> None:
    """Under 1e7 float32 counts in ones: what is left of unrelated logits is as unrelated as before."""
    for size in (1.0, 10.0):
        logits, other = (np.float32(1e7 + size * drawn(seed)) for seed in (0, 1))
        found = compare_logits(logits, other)
        assert found.relative > 0.5
        assert found.agreement < 0.5
        assert not found.told_apart
    far = compare_logits(np.float32(100 + drawn(0)), np.float32(100 + drawn(0) + 1e-5 * drawn(1)))
    assert far.told_apart
    assert far.agreement == 1


def test_an_image_whose_logits_are_nearly_equal_has_the_spread_of_a_typical_one() -> None:
    """Rounding leaves errors as large as in other images there, and no tie is a changed answer."""
    logits = np.float32(drawn(0))
    logits[:3] *= 1e-6
    moved = logits + np.float32(1e-6) * np.float32(drawn(1))
    found = compare_logits(logits, moved)
    assert found.relative < 1e-5
    assert found.agreement == 1
    black = np.float32(1e-6 * drawn(2, images=10))
    shaken = black + np.float32(1e-6) * np.float32(drawn(3, images=10))
    assert compare_logits(black, shaken).relative > 0.1
    assert compare_logits(black, shaken, usual=3.0).relative < 1e-5


def test_one_image_of_a_large_spread_hides_no_other() -> None:
    logits = np.float32(drawn(0))
    logits[0] *= 1e6
    wrong = logits.copy()
    wrong[1:] += np.float32(0.1) * np.float32(drawn(1))[1:]
    assert compare_logits(logits, wrong).relative > 0.02


def test_logits_that_are_all_equal_agree_with_nothing_else() -> None:
    equal = np.full((64, 10), 0.5, dtype=np.float32)
    assert compare_logits(equal, equal).relative == 0
    found = compare_logits(equal, np.float32(0.5 + 1e-6 * drawn(0)))
    assert found.relative > 1e6
    assert found.agreement < 0.5


def test_a_source_whose_differences_float32_rounds_away_does_not_pass(victim: Victim) -> None:
    """Not even compared with itself: every export would."""
    net = victim[0]

    class Offset(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return net(x) + 1e8

    far = Offset().eval()
    asked = ask_source(far, artifact(), victim[1])
    parity = verify(asked, exported(lambda images: runs(far, images)), QUANTISED)
    assert parity.failures[0].endswith("too near each other for float32 to tell them apart")


def test_tf32_is_off_while_it_verifies(victim: Victim, asked: SourceAnswers) -> None:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    seen: list[bool] = []

    def predict(images: np.ndarray) -> np.ndarray:
        seen.extend(flag.allow_tf32 for flag in flags)
        return runs(victim[0], images)

    try:
        for flag in flags:
            flag.allow_tf32 = True
        verify(asked, exported(predict), EXACT)
        assert [flag.allow_tf32 for flag in flags] == [True, True]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
    assert not any(seen)
    assert len(seen) > 10


class Shared(nn.Module):
    """One ReLU, in place, called twice; a module that returns a pair; one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


def test_layers_are_compared_in_the_order_in_which_they_return() -> None:
    net, seen = Shared().eval(), {}
    images = np.random.default_rng(0).random((3, 4), dtype=np.float32)

    def layers(wrong: dict[str, float]) -> Any:
        def run(exported: Any, calls: Any) -> dict[str, Value]:
            seen.update(calls)
            return {
                name: Value((call.output.numpy() + np.float32(wrong.get(name, 0)),), f"node {name}")
                for name, call in calls.items()
            }

        return run

    found = first_divergence(net, exported(len), images, layers({"second": 1, "": 1}), 1e-4)
    assert found is not None
    assert (found.layer, found.place, found.within) == ("second", "node second", False)
    assert list(seen) == ["first", "second", ""]
    with torch.no_grad():  # what a module returned, not what the ReLU in place made of it
        expected = net.first(torch.from_numpy(images))
    assert torch.equal(seen["first"].output, expected)
    assert seen["first"].output.min() < 0
    nearly = first_divergence(net, exported(len), images, layers({"first": 1e-6, "second": 1e-3, "": 1e-3}), None)
    assert nearly is not None
    assert (nearly.layer, nearly.within) == ("second", True)
    assert str(nearly).startswith("the largest jump is at second (node second): ")
    assert first_divergence(net, exported(len), images, lambda exported, calls: {}, 1e-4) is None
    assert not net._forward_hooks
    assert not net.first._forward_pre_hooks


def test_the_nearer_of_two_values_stands_for_a_layer() -> None:
    """A quantiser takes in the ReLU behind a layer: one of the values before and after it is the layer's."""
    net = nn.Sequential(nn.Linear(4, 4)).eval()
    images = np.random.default_rng(0).random((3, 4), dtype=np.float32)

    def layers(exported: Any, calls: dict[str, Call]) -> dict[str, Value]:
        right = calls["0"].output.numpy()
        return {"0": Value((right + 5, right))}

    found = first_divergence(net, exported(len), images, layers, None)
    assert found is not None
    assert found.relative == 0


def test_a_tolerance_is_what_the_format_says() -> None:
    """Two networks that differ a little: one tolerance is too tight for that, another is not."""
    net = build_model("resnet8", in_channels=1, classes=10).eval()
    asked = ask_source(net, artifact(), None)
    apart = exported(lambda images: runs(net, images) * np.float32(1 + 1e-3))
    assert not verify(asked, apart, replace(EXACT, relative=1e-4)).passed
    assert verify(asked, apart, HALF).passed
