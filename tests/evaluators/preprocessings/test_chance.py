"""Whether answers have to do with classes, on counts of which the answer is known."""

import numpy as np
import pytest

from evaluators.preprocessings.chance import above_guessing, names_fit, one_to_one


def answered(outputs: list[int], each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers where all images of class k are answered `outputs[k]`."""
    labels = np.repeat(np.arange(len(outputs)), each)
    return labels, np.array(outputs)[labels]


def test_guessing_is_binomial() -> None:
    """P(X >= 3 of 4 at 1/2) = 5/16, by hand."""
    right = np.array([True, True, True, False])
    assert above_guessing(right, 0.5, 5 / 16 + 1e-9)
    assert not above_guessing(right, 0.5, 5 / 16 - 1e-9)


@pytest.mark.parametrize("k", [2, 3, 5, 8, 30])
def test_the_own_names_fit_best(k: int) -> None:
    labels, answers = answered(list(range(k)))
    assert names_fit(labels, answers, np.arange(k), tried=16)


def test_a_class_that_bears_the_right_name_is_an_accident() -> None:
    """A network that knows no class names two of ten rightly, with all their images: 40 of 200; guessing has 20."""
    labels, answers = answered([0, 1, 7, 7, 1, 1, 1, 3, 3, 3])
    assert above_guessing(answers == labels, 0.1, 0.001)
    assert not names_fit(labels, answers, np.arange(10), tried=16)


def test_a_weak_network_that_knows_all_classes_a_little_is_none() -> None:
    labels, _ = answered([0] * 10, each=50)
    draws = np.random.default_rng(0)
    answers = np.where(draws.random(500) < 0.25, labels, draws.integers(0, 10, 500))
    assert names_fit(labels, answers, np.arange(10), tried=16)


@pytest.mark.parametrize("seed", range(20))
def test_an_order_of_a_network_that_knows_nothing_is_not_believed(seed: int) -> None:
    """Each class has one answer, at random: several classes share one, and no order puts more than two thirds right."""
    draws = np.random.default_rng(seed)
    outputs = draws.integers(0, 12, 12)
    labels, answers = answered(outputs.tolist())
    right = 20 * len(set(outputs.tolist()))
    assert not one_to_one(labels, answers, right) or len(set(outputs.tolist())) >= 11


def test_an_order_in_which_each_class_has_its_own_answer_is_believed() -> None:
    labels, answers = answered([int(k) for k in np.random.default_rng(0).permutation(12)])
    draws = np.random.default_rng(1)
    weak = np.where(draws.random(len(labels)) < 0.7, answers, draws.integers(0, 12, len(labels)))
    assert one_to_one(labels, answers, len(labels))
    assert one_to_one(labels, weak, int((weak == answers).sum()))


def test_of_few_classes_an_order_has_to_put_most_right() -> None:
    labels, answers = answered([1, 2, 0, 3])
    assert one_to_one(labels, answers, 70)
    assert not one_to_one(labels, answers, 60)
