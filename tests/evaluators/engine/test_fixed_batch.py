"""Files of a fixed batch size: searches ask a faster copy, and the file gives every verdict."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from victims import as_onnx, one_convolution

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.data import Split, load_dataset
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.square.square import Square
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.engine.units import Unit
from evaluators.plan.rows import Surrogate, plan
from evaluators.target.estimators import OnnxClassifier, PredictorClassifier, searched_by, to_estimator
from exporters.formats import load

EPS = 0.06
QUICK: dict[str, dict[str, Any]] = {
    "square": {"queries": 40},
    "art:square": {"max_iter": 20},
    "art:hopskipjump": {"max_iter": 2, "max_eval": 50, "init_eval": 10, "samples": 6},
    "fab-t": {"steps": 10},
    "pgd": {"restarts": 2},
}


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_dataset("digits").test.subset(24)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return as_onnx(one_convolution(), tmp_path_factory.mktemp("free"), (1, 8, 8))


@pytest.fixture(scope="module")
def fixed(free: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The same file for one image at a time."""
    assert free.path is not None
    model = onnx.load(str(free.path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path_factory.mktemp("fixed") / "fixed.onnx"
    onnx.save(model, str(path))
    predictor = load(path)
    assert predictor.batch == 1
    assert predictor.search is not None
    return predictor


class Counting:
    """A callable that counts the images it is asked about."""

    def __init__(self, ask: Callable[[np.ndarray], np.ndarray]) -> None:
        self.ask, self.images, self.calls = ask, 0, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        self.calls += 1
        return self.ask(images)


def run(predictor: Predictor, split: Split, *names: str, **options: Any) -> Evaluation:
    settings = {name: QUICK[name.removeprefix("transfer:")] for name in names if name in QUICK}
    rows = plan(names, norm="linf", eps=[EPS], settings=settings, surrogates=options.pop("surrogates", ()))
    return evaluate(predictor, split, rows, **options)


def unit_of(evaluation: Evaluation) -> Unit:
    (outcome,) = evaluation.outcomes
    assert outcome.unit is not None, outcome.reason
    return outcome.unit


def images_of(split: Split) -> np.ndarray:
    return split.take(slice(None)) / np.float32(255)


@pytest.mark.parametrize("name", QUICK)
def test_verdicts_are_those_of_the_file_with_a_free_batch(
    name: str, fixed: Predictor, free: Predictor, digits: Split
) -> None:
    ours, theirs = unit_of(run(fixed, digits, name)), unit_of(run(free, digits, name))
    np.testing.assert_array_equal(ours.attacked, theirs.attacked)
    np.testing.assert_array_equal(ours.broken, theirs.broken)
    if not name.startswith("art:"):
        # Each image that a search breaks is shown to the file once more.
        assert theirs.forward_passes <= ours.forward_passes <= theirs.forward_passes + 2 * ours.attacked.sum()


@pytest.mark.parametrize("name", ["square", "art:square"])
def test_the_many_queries_do_not_go_to_the_file(name: str, fixed: Predictor, digits: Split) -> None:
    assert fixed.search is not None
    file, copy = Counting(fixed.predict), Counting(fixed.search)
    spied = replace(fixed, predict=file, search=copy)
    judged = unit_of(run(spied, digits, "fgsm")).attacked.sum()
    before = file.images - judged  # the clean pass and the checks
    assert (before > 0, copy.images) == (True, 0)
    unit = unit_of(run(spied, digits, name))
    asked = file.images - judged - 2 * before
    assert asked <= 3 * unit.attacked.sum()
    elsewhere = unit.forward_passes - asked
    assert elsewhere > 5 * asked
    assert copy.images == elsewhere if name == "art:square" else copy.images > 0  # Square asks the twin in windows


def test_a_search_that_errs_breaks_nothing_and_ends_nothing(fixed: Predictor, digits: Split) -> None:
    """The copy says that everything is broken; the file holds. Square asks all its queries, and nothing counts."""
    copy = Counting(lambda images: -fixed.predict(images))
    harmless = Counting(lambda images: fixed.predict(np.rint(images * 4) / np.float32(4)))
    x, y = images_of(digits), harmless.ask(images_of(digits)).argmax(1)
    attack = Square(to_estimator(replace(fixed, predict=harmless, search=copy)), eps=1e-3, queries=30)
    found = attack.run(x, y)
    still = harmless.ask(found.adversarials).argmax(1) == y
    assert still.all()
    assert copy.images > 20 * len(x) / 2  # a proposal that changes no pixel is not asked about


def test_an_image_that_only_the_copy_gets_wrong_is_searched_on(fixed: Predictor, digits: Split) -> None:
    """The copy is biased against the labels, so that it gives up on images too early; the file breaks all the same."""
    x = images_of(digits)
    y = fixed.predict(x).argmax(1)
    nearest = {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    assert len(nearest) == len(x)

    def biased(images: np.ndarray) -> np.ndarray:
        logits = fixed.predict(images).copy()
        labels = y[[int(np.abs(x - image).sum(axis=(1, 2, 3)).argmin()) for image in images]]
        logits[np.arange(len(images)), labels] -= 2.0
        return logits

    hurried = replace(fixed, search=biased)
    for cls, options in ((Square, {"queries": 300}), (FAB, {"targets": 9, "steps": 20})):
        results = []
        for predictor in (fixed, hurried):
            found = cls(to_estimator(predictor), eps=0.12, **options).run(x, y)
            results.append(fixed.predict(found.adversarials).argmax(1) != y)
        assert results[0].sum() > len(x) / 2
        assert results[1].sum() >= 0.8 * results[0].sum()


def test_the_ensemble_passes_on_what_the_file_gets_right(fixed: Predictor, digits: Split) -> None:
    copy = lambda images: -fixed.predict(images)  # noqa: E731 - wrong about everything
    x = images_of(digits)
    y = fixed.predict(x).argmax(1)
    found = AutoAttack(to_estimator(replace(fixed, search=copy)), eps=EPS, queries=5).run(x, y)
    assert found.broken_by is not None
    np.testing.assert_array_equal(found.broken_by >= 0, fixed.predict(found.adversarials).argmax(1) != y)


def test_arts_attacks_are_run_again_on_the_file_where_the_copy_errs(fixed: Predictor, digits: Split) -> None:
    """The copy calls each image broken at once, so that ART's Square attack does nothing on it."""
    spied = replace(fixed, search=lambda images: -fixed.predict(images))
    honest = unit_of(run(replace(fixed, search=None), digits, "art:square"))
    found = unit_of(run(spied, digits, "art:square"))
    assert honest.broken.sum() > 0
    np.testing.assert_array_equal(found.broken, honest.broken)


def test_transfer_from_a_file_of_fixed_batch(fixed: Predictor, free: Predictor, digits: Split) -> None:
    assert fixed.search is not None
    copy = Counting(fixed.search)
    source = Surrogate("other", replace(fixed, search=copy, sha256="1" * 64))
    ours = unit_of(run(free, digits, "transfer:square", surrogates=[source]))
    assert copy.images > 0
    theirs = unit_of(run(free, digits, "transfer:square", surrogates=[Surrogate("other", free)]))
    np.testing.assert_array_equal(ours.broken, theirs.broken)


def test_units_are_found_again(fixed: Predictor, digits: Split, tmp_path: Path) -> None:
    """Also by an evaluation that has no copy to ask: the file is the same, and so is the question."""
    assert fixed.search is not None
    first = unit_of(run(fixed, digits, "square", store=tmp_path))

    def refuses(images: np.ndarray) -> np.ndarray:
        raise AssertionError("it was searched before")

    for search in (refuses, None):
        again = unit_of(run(replace(fixed, search=search), digits, "square", store=tmp_path))
        np.testing.assert_array_equal(again.broken, first.broken)
        assert again.forward_passes == first.forward_passes


def test_an_estimator_that_somebody_has_changed_is_asked_itself(fixed: Predictor) -> None:
    class Logging(OnnxClassifier):
        def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> Any:
            return super().predict(x, batch_size)

    plain = to_estimator(fixed)
    asked = searched_by(plain)
    assert asked is not plain
    assert isinstance(asked, PredictorClassifier)
    assert asked.model is plain.model
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    assert fixed.search is not None
    np.testing.assert_array_equal(asked.predict(x), fixed.search(x))
    np.testing.assert_array_equal(plain.predict(x), fixed.predict(x))
    own = Logging(fixed)
    assert searched_by(own) is own
    black = to_estimator(replace(fixed, module=None))
    np.testing.assert_array_equal(searched_by(black).predict(x), fixed.search(x))
    assert searched_by(to_estimator(replace(fixed, search=None))).predictor.search is None


def test_gradients_are_those_of_the_twin_in_both(fixed: Predictor, free: Predictor) -> None:
    assert fixed.module is not None
    assert free.module is not None
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(fixed.module(x), free.module(x))
