"""Classes in the order of a model's outputs: labels that follow their names, and names that say too little."""

import shlex
import unicodedata
from dataclasses import replace

import numpy as np
import pytest

from dgad_tk.common import UserError
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.data.labels.order import LONGEST_LIST, as_flag, in_order, sorted_as_text

DIGITS = [str(digit) for digit in range(10)]


def of(names: list[str]) -> Dataset:
    """The digits under other names."""
    return replace(load_dataset("digits"), classes=names)


@pytest.mark.parametrize("seed", range(3))
def test_labels_follow_their_names_and_images_stay(seed: int) -> None:
    digits = load_dataset("digits")
    names = np.random.default_rng(seed).permutation([*DIGITS, "background", "none"]).tolist()
    ordered = in_order(digits, names)
    assert ordered.classes == names
    for before, after in zip(digits.splits.values(), ordered.splits.values(), strict=True):
        assert np.array_equal(before.index, after.index)
        assert before.base is after.base
        assert [names[label] for label in after.labels] == [digits.classes[label] for label in before.labels]
    assert (ordered.name, ordered.options, ordered.notes) == (digits.name, digits.options, digits.notes)


def test_what_is_kept_by_the_hash_is_kept_per_order() -> None:
    digits = load_dataset("digits")
    hashes = {digits.sha256}
    for names in (DIGITS[::-1], ["background", *DIGITS], [*DIGITS, "background"], [*DIGITS[1:], "0"]):
        hashes.add(in_order(digits, names).sha256)
    assert len(hashes) == 5
    assert in_order(digits, DIGITS[::-1]).sha256 == in_order(digits, DIGITS[::-1]).sha256


def test_the_same_order_changes_nothing() -> None:
    digits = load_dataset("digits")
    assert in_order(digits, digits.classes) is digits


def test_there_and_back() -> None:
    digits = load_dataset("digits")
    back = in_order(in_order(digits, DIGITS[::-1]), DIGITS)
    assert np.array_equal(back.test.labels, digits.test.labels)


def test_names_are_compared_composed() -> None:
    names = ["zwölf", "é", *DIGITS[2:]]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert decomposed != names
    for stored, given in ((names, decomposed), (decomposed, names)):
        ordered = in_order(of(stored), given[::-1])
        assert ordered.classes == names[::-1]
        assert ordered.test.labels[0] == 9 - load_dataset("digits").test.labels[0]


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["zwo", *DIGITS[1:]], "has no '0', a class of digits", "has to name each class"),
        ([*DIGITS[:8], "seventy"], "has no '8', a class of digits (and 1 more)", ""),
        ([*DIGITS, "3"], "names '3' twice, as outputs 3 and 10", ""),
        ([*DIGITS, ""], "empty name, the one of output 10", ""),
        ([*DIGITS, "\udcfc"], r"'\xfc' is not UTF-8", ""),
        ([*DIGITS, "\x1b[31mred"], r"control characters in '\x1b[31mred', the name of output 10", ""),
        (["0"], "at least two names, got 0", ""),
        ([], "at least two names, got none", ""),
    ],
)
def test_what_is_no_order(names: list[str], message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        in_order(load_dataset("digits"), names)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert hint in caught.value.hint


def test_a_missing_class_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="has no 'labrador'") as caught:
        in_order(of(["labrador", *DIGITS[1:]]), ["Labrador dog", "labradr", *DIGITS[1:]])
    assert "'labradr'" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (DIGITS, ""),
        (["cat", "dog"], ""),
        (["n01440764", "n01443537"], ""),
        (["a10b", "a10c"], ""),
        (["0", "1", "10", "2"], "'10' is label 2, and by the numbers in the names it is 3"),
        (["class_1", "class_10", "class_2"], "'class_10' is label 1, and by the numbers in the names it is 2"),
        (["9" * 30, "9" * 30 + "1"], ""),
    ],
)
def test_numbers_that_are_sorted_as_text(names: list[str], told: str) -> None:
    found = sorted_as_text(names)
    assert told in found
    assert bool(told) == bool(found)


def test_a_list_to_copy() -> None:
    assert as_flag(["0", "1"]) == "--classes 0,1"
    for names in (["it's", "a b"], ["$x", "y;z"], ["ä", "#1"]):
        flag, copied = shlex.split(as_flag(names))
        assert (flag, copied.split(",")) == ("--classes", names)
    for names in (["a,b", "c"], [" a", "b"], ["x" * LONGEST_LIST, "y"]):
        assert as_flag(names).startswith("--classes FILE")
    assert as_flag(["class_1", "class_2"]) in sorted_as_text(["class_2", "class_1"])
