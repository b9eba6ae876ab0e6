"""Doubts about a model's answers: raised by what they are for, at few images and many, and by no honest model."""

import numpy as np
import pytest

from dgad_tk.answers.doubts import NONE, is_common, one_answer, other_order, per_class, right_at_best

Classes = np.ndarray


def names(k: int) -> list[str]:
    return [f"kind{chr(97 + each // 26)}{chr(97 + each % 26)}" for each in range(k)]


def labels_of(k: int, each: int, seed: int = 0) -> Classes:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(k), each))


def noisy(answers: Classes, k: int, accuracy: float, seed: int = 0) -> Classes:
    """Answers of which a share, and those that guessing adds, stay; the others are drawn."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(answers)) < accuracy, answers, rng.integers(0, k, len(answers)))


@pytest.mark.parametrize(
    ("k", "each", "accuracy"),
    [
        (2, 4, 1.0),
        (2, 50, 0.8),
        (3, 30, 1.0),
        (4, 5, 1.0),
        (10, 30, 0.6),
        (10, 100, 0.5),
        (100, 20, 0.7),
        (200, 8, 1.0),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_two_classes_that_change_places(k: int, each: int, accuracy: float, seed: int) -> None:
    labels = labels_of(k, each, seed)
    order = np.arange(k)
    order[[0, k - 1]] = k - 1, 0
    found = other_order(labels, noisy(order[labels], k, accuracy, seed), names(k))
    assert found is not None
    assert found.after > found.before
    assert f"'{names(k)[0]}' and '{names(k)[-1]}' have changed places" in str(found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("accuracy", [0.5, 1.0])
def test_a_wholly_other_order(accuracy: float, seed: int) -> None:
    labels, order = labels_of(10, 20), np.random.default_rng(seed).permutation(10)
    found = other_order(labels, noisy(order[labels], 10, accuracy, seed), names(10))
    assert found is not None
    assert found.after == (noisy(order[labels], 10, accuracy, seed) == order[labels]).sum()


@pytest.mark.parametrize(("k", "each"), [(3, 5), (10, 1), (10, 50), (1000, 1)])
@pytest.mark.parametrize(("shift", "said"), [(1, "one too high"), (-1, "one too low")])
def test_answers_that_are_shifted(k: int, each: int, shift: int, said: str) -> None:
    labels = labels_of(k, each)
    answers = labels + shift if shift > 0 else np.maximum(labels - 1, 0)
    assert said in str(other_order(labels, noisy(answers, k, 1.0 if k == len(labels) == 10 else 0.9), names(k)))


@pytest.mark.parametrize("form", ["{}", "class{}", "n{}x"])
@pytest.mark.parametrize("shift", [0, 1])
def test_numbers_in_names_that_are_sorted_as_text(form: str, shift: int) -> None:
    folders = sorted(form.format(k) for k in range(12))
    counted = np.array([int("".join(c for c in name if c.isdigit())) for name in folders])
    labels = labels_of(12, 3)
    said = str(other_order(labels, counted[labels] + shift, folders))
    assert f"'{form.format(10)}' is its class 10, sorted as text it is {folders.index(form.format(10))}" in said
    assert ("one too high" in said) == bool(shift)
    assert other_order(labels, labels, folders) is None


@pytest.mark.parametrize("form", ["{}", "class_{}"])
@pytest.mark.parametrize("shift", [0, -1])
def test_names_that_are_the_numbers_of_some_outputs(form: str, shift: int) -> None:
    """Folders of six digits out of ten; the last of them has one image, which no search could place."""
    numbers = np.array([1, 4, 6, 7, 8, 9])
    folders = [form.format(k) for k in numbers]
    labels = np.append(np.repeat(np.arange(5), 6), 5)
    found = other_order(labels, numbers[labels] + shift, folders, 10)
    assert found is not None
    assert found.order.tolist() == (numbers + shift).tolist()
    assert is_common(found.order, folders)
    assert "the names are the numbers of its classes" in str(found)
    assert ("one too low" in str(found)) == bool(shift)
    assert other_order(labels, labels, folders, 10) is None


def test_names_whose_order_ignores_capitals() -> None:
    labels = labels_of(4, 4)
    said = str(other_order(labels, np.array([2, 0, 1, 3])[labels], ["Car", "apple", "bus", "dog"]))
    assert "ignores capitals ('Car' is its class 2, sorted as text it is 0)" in said


def test_names_that_somebody_put_in_another_order() -> None:
    labels = labels_of(3, 4)
    said = str(other_order(labels, np.array([2, 0, 1])[labels], ["fox", "cat", "dog"]))
    assert "is alphabetical ('fox' is its class 2, here it is 0)" in said


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("k", "each", "accuracy"),
    [(2, 4, 0.0), (2, 50, 0.1), (3, 30, 0.0), (10, 3, 0.0), (10, 30, 0.1), (12, 5, 0.3), (100, 2, 0.0), (100, 20, 0.2)],
)
def test_a_model_that_is_merely_not_good(k: int, each: int, accuracy: float, seed: int) -> None:
    labels = labels_of(k, each, seed)
    folders = sorted(map(str, range(k)))  # a reason at hand makes no difference
    assert other_order(labels, noisy(labels, k, accuracy, seed), folders) is None


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_are_alike_are_no_other_order(seed: int) -> None:
    """Cats and dogs taken for each other 45 times of 100, and right 55 times; or all dogs taken for cats."""
    rng, labels = np.random.default_rng(seed), labels_of(10, 100)
    confused = np.where((labels < 2) & (rng.random(1000) < 0.45), 1 - labels, labels)
    assert other_order(labels, confused, names(10)) is None
    assert other_order(labels, np.where(labels == 1, 0, labels), names(10)) is None


def test_images_without_an_answer() -> None:
    labels = labels_of(3, 30)
    assert other_order(labels, np.full(90, NONE), names(3)) is None
    swapped = np.where(np.arange(90) % 3 == 0, NONE, np.array([0, 2, 1])[labels])
    assert "'kindab' and 'kindac' have changed places" in str(other_order(labels, swapped, names(3)))


def test_very_many_classes_take_no_matrix_of_them() -> None:
    """Of 20,000 classes, the pairs of label and answer alone would take 3 GB."""
    labels = np.arange(20_000)
    assert "one too high" in str(other_order(labels, labels + 1, names(20_000)))
    assert other_order(labels, np.roll(labels, 100), names(20_000)) is None


def test_many_moves_are_cut() -> None:
    labels, order = labels_of(40, 10), np.roll(np.arange(40), 7)
    assert str(other_order(labels, order[labels], names(40))).endswith(", and 30 more")


def test_one_answer_for_nearly_everything() -> None:
    labels = np.repeat([0, 1], [95, 5])
    majority = labels.copy()
    majority[96:] = 0
    assert "96.0% of 100 images are right, and the answer 'a' alone would have 95.0%" in one_answer(
        labels, majority, ["a", "b"]
    )
    for right in (labels, np.where(np.arange(100) < 3, 1, labels), np.where(np.arange(100) == 99, 0, labels)):
        assert one_answer(labels, right, ["a", "b"]) == ""
    halves = labels_of(2, 10)
    assert one_answer(halves, 1 - halves, ["a", "b"]) == ""  # two classes that have changed places


@pytest.mark.parametrize("seed", range(20))
def test_a_weak_model_on_classes_of_equal_size_does_not_answer_one(seed: int) -> None:
    labels = labels_of(10, 20, seed)
    assert one_answer(labels, noisy(labels, 10, 0.1, seed), names(10)) == ""


def test_images_of_each_class() -> None:
    labels = np.array([0, 0, 2, 2, 2])
    n, right = per_class(labels, np.array([True, True, False, True, True]), 4)
    assert (n.tolist(), right.tolist()) == ([2, 0, 3, 0], [2, 0, 2, 0])


def test_an_order_that_loses_more_than_it_corrects_is_none() -> None:
    """One too low: right on all of the rare class, and without an answer for the common one."""
    labels = np.repeat([0, 1], [180, 20])
    assert other_order(labels, np.zeros(200, np.int64), names(2)) is None


def test_what_the_best_order_would_make_of_answers_is_a_bound() -> None:
    labels = labels_of(10, 20)
    moved = np.random.default_rng(1).permutation(10)
    for answers in (labels, labels + 1, moved[labels]):
        assert right_at_best(labels, answers, names(10)).all()
    weak = noisy(labels, 10, 0.3)
    assert right_at_best(labels, weak, names(10)).sum() >= (weak == labels).sum()
    few = labels_of(10, 2)  # of two images per class, an order that fits can nearly always be found
    assert right_at_best(few, moved[few], names(10)).sum() < 10


def test_common_orders_are_known_from_those_that_were_searched_for() -> None:
    numbered = sorted(map(str, range(12)))
    by_number = np.array([int(name) for name in numbered])
    assert is_common(by_number, numbered)
    assert is_common(by_number + 1, numbered)
    assert not is_common(np.roll(by_number, 3), numbered)


@pytest.mark.parametrize("seed", [7, 35, 132, 136])
def test_a_class_in_front_is_believed_before_an_order_that_has_a_few_more_right_by_accident(seed: int) -> None:
    labels = np.resize(np.arange(10), 64)  # so few that an assignment that is chosen on them often has more right
    order = other_order(labels, noisy(labels + 1, 11, 0.45, seed), names(10), 11)
    assert order is not None
    assert is_common(order.order, names(10))


def test_an_order_with_a_class_in_front_and_two_that_have_changed_places_is_found() -> None:
    labels, true = labels_of(10, 20), np.array([2, 1, *range(3, 11)])
    order = other_order(labels, noisy(true[labels], 11, 0.8), names(10), 11)
    assert order is not None
    assert (order.order == true).all()
