"""Results beside each other: figures by hand and by scipy, what changed, what survives, what is refused."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from answered import answered, row
from scipy.stats import binomtest
from victims import TwoClassLinear, as_torch, linear_split

from dgad_tk.common import UserError
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.report.files import results, write
from evaluators.results import Item
from evaluators.verdict.comparison.compare import comparison
from evaluators.verdict.comparison.document import Comparison, Pair, PairedTest
from evaluators.verdict.comparison.findings import LONGEST, decimal, p_text, short_names
from evaluators.verdict.records import Record, read_record

N = 22
LABEL = [0] * N
"""All cats. Answer 0 is right."""


def compared(*records: Record) -> Comparison:
    return comparison(records, [f"{number}.json" for number in range(1, len(records) + 1)], command="dgad compare")


def test_of(pair: Pair, name: str) -> PairedTest:
    return next(each for each in pair.tests if each.name == name)


test_of.__test__ = False  # type: ignore[attr-defined]


def cats(held: list[int], *, model: str = "a.onnx") -> Record:
    """A model that is right on all clean images, and under PGD on those in `held`."""
    return answered(LABEL, LABEL, {"pgd": [0 if at in held else 1 for at in range(N)]}, model=model)


def test_a_table_of_four_cells_by_hand() -> None:
    """10 right in both, 5 lost, 1 won, 6 wrong in both."""
    before, after = cats(list(range(15))), cats([*range(10), 15], model="b.onnx")
    (pair,) = compared(before, after).pairs
    found = test_of(pair, "pgd")
    assert (found.n, found.reference_right, found.right, found.lost, found.won) == (22, 15, 11, 5, 1)
    assert found.difference == pytest.approx(-4 / 22)
    # (won + 1/2 - lost - 1/2) / (n + 2), and 1.959964 * sqrt(7 - 16 / 24) / 24 to both sides
    half = 1.959964 * math.sqrt(7 - 16 / 24) / 24
    assert found.ci95 == pytest.approx((-1 / 6 - half, -1 / 6 + half))
    assert found.p == pytest.approx(14 / 64)  # 2 * (1 + 6) / 2**6: none or one of six
    assert found.p == pytest.approx(binomtest(1, 6).pvalue)
    assert found.p_adjusted == pytest.approx(2 * 14 / 64)  # of two tests; p of clean is 1
    assert test_of(pair, "clean").p_adjusted == 1
    assert not found.more_than_chance
    assert found.finding == "No difference shown in robustness under pgd at 0.1"
    minus = "\N{MINUS SIGN}"
    ends = f"{minus}37.2 to +3.9"
    assert found.evidence == f"b.onnx {minus}18.2 points ({ends}), 6 of 22 images differ, p = 0.22"
    clean = test_of(pair, "clean")
    assert clean.finding == "No difference shown in accuracy on clean images"
    assert clean.evidence == f"b.onnx 0.0 points ({minus}8.2 to +8.2), 0 of 22 images differ, p = 1"


@pytest.mark.parametrize(
    ("lost", "finding", "evidence"),
    [
        (
            12,
            "b.onnx is 54.5 points less robust than a.onnx under pgd at 0.1 (",
            "it lost 12 and won 0 of 22 images, more than chance explains, p = 0.0005, and 0.0010 adjusted for 2 tests",
        ),
        (6, "No difference shown in robustness", "), 6 of 22 images differ, p = 0.031, but 0.062 adjusted for 2 tests"),
        (1, "No difference shown in robustness", "), 1 of 22 images differs, p = 1"),
        (
            20,
            "b.onnx is 90.9 points less robust",
            "more than chance explains, p < 0.0001, and <0.0001 adjusted for 2 tests",
        ),
    ],
)
def test_how_sure_a_finding_is(lost: int, finding: str, evidence: str) -> None:
    """What chance can explain does not lead with a difference."""
    (pair,) = compared(cats(list(range(N))), cats(list(range(lost, N)), model="b.onnx")).pairs
    test = test_of(pair, "pgd")
    assert test.finding.startswith(finding)
    assert test.evidence.endswith(evidence)


def test_every_p_and_holm_over_all_of_them() -> None:
    """Three results with three rows each: eight tests of which each p is scipy's, adjusted from the smallest on."""
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, 200).tolist()
    rows = [row("fgsm"), row("pgd")]

    def drawn(model: str, share: float) -> Record:
        answers = {each.id: np.where(rng.random(200) < share, label, 9).tolist() for each in rows}
        return answered(label, label, answers, rows, model=model)

    found = compared(drawn("a.onnx", 0.6), drawn("b.onnx", 0.5), drawn("c.onnx", 0.65))
    tests = [test for pair in found.pairs for test in pair.tests]
    assert [test.name for test in tests] == ["clean", "fgsm", "pgd", "worst-case"] * 2
    assert found.adjustment.tests == len(tests) == 8
    assert [pair.other for pair in found.pairs] == [2, 3]
    for test in tests:
        expected = binomtest(test.won, test.won + test.lost).pvalue if test.won + test.lost else 1.0
        assert test.p == pytest.approx(expected)
        assert test.right - test.reference_right == test.won - test.lost
    largest = 0.0
    for rank, test in enumerate(sorted(tests, key=lambda test: test.p)):
        largest = max(largest, min(1.0, (8 - rank) * test.p))
        assert test.p_adjusted == pytest.approx(largest)
        assert test.more_than_chance == (test.p_adjusted < 0.05)
    assert Comparison.model_validate_json(found.model_dump_json(by_alias=True)) == found
    assert found.to_dict()["schema"] == "dgad/compare/1"


def test_the_worst_case_is_that_of_the_results(tmp_path: Path) -> None:
    """Of linear models under two attacks at two radii: as results.json has it, image by image in closed form."""
    split, folders = linear_split(40), []
    images = split.take(slice(None)) / np.float32(255)
    middle = float(np.median(TwoClassLinear().requires_grad_(False).margins(images, "linf")))
    radii = (round(middle / 2, 4), round(middle, 4))
    for number, shift in enumerate((0.0, 0.4)):
        module = TwoClassLinear().requires_grad_(False)
        module.b += shift
        rows = plan(("fgsm", "pgd"), norm="linf", eps=radii)
        evaluation = evaluate(as_torch(module), split, rows, batch_size=40)
        folder = tmp_path / str(number)
        write(evaluation, results(evaluation, command="", dataset="linear", split="test"), folder)
        folders.append((folder, module))
    records = [read_record(folder) for folder, _ in folders]
    (pair,) = compared(*records).pairs
    assert pair.headlines == [f"worst-case@{radii[1]}", f"worst-case@{radii[0]}", "clean"]
    for number, eps in enumerate(radii):
        test = test_of(pair, f"worst-case@{eps}")
        worst = [record.results.worst_case[number] for record in records]
        assert [test.reference_right, test.right] == [each.robust for each in worst]
        clean = [record.clean for record in records]
        held = [
            right & (module.margins(images, "linf") > eps) for right, (_, module) in zip(clean, folders, strict=True)
        ]
        assert [each.index for each in test.changes] == np.flatnonzero(held[0] != held[1]).tolist()
        assert test.lost + test.won > 0
        assert [each.change for each in test.changes] == [
            "lost" if held[0][each.index] else "won" for each in test.changes
        ]


def test_which_images_changed_and_what_was_answered() -> None:
    """Image by image: kept, lost when clean, lost under fgsm, lost under pgd, won, wrong in both."""
    label, rows = [0, 1, 2, 0, 1, 2], [row("fgsm"), row("pgd")]
    index = [40, 10, 30, 20, 60, 50]
    before = answered(
        label, [0, 1, 2, 0, 1, 0], {"fgsm": [0, 1, 2, 0, 1, -1], "pgd": [0, 1, 2, 0, 0, -1]}, rows, index=index
    )
    after = answered(
        label,
        [0, 2, 2, 0, 1, -1],
        {"fgsm": [0, -1, 1, 0, 1, -1], "pgd": [0, -1, 2, 7, 1, -1]},
        rows,
        index=index,
        model="b.onnx",
    )
    (pair,) = compared(before, after).pairs
    changes = [tuple(each.model_dump().values()) for each in test_of(pair, "worst-case").changes]
    assert changes == [
        (10, "lost", "dog", "dog", "owl", "clean"),
        (20, "lost", "cat", "cat", "class 7", "pgd"),
        (30, "lost", "owl", "owl", "dog", "fgsm"),
        (60, "won", "dog", "cat", "dog", "pgd"),
    ]
    assert [each.index for each in test_of(pair, "clean").changes] == [10]
    assert [each.index for each in test_of(pair, "fgsm").changes] == [10, 30]
    assert [(each.index, each.row) for each in test_of(pair, "pgd").changes] == [
        (10, "clean"),
        (20, "pgd"),
        (60, "pgd"),
    ]
    swapped = compared(after, before).pairs[0]
    assert [each.change for each in test_of(swapped, "worst-case").changes] == ["won", "won", "won", "lost"]


def test_results_of_an_older_dgad_have_names_of_classes() -> None:
    """Those with images, and those that the model knows."""
    record = answered([0, 2], [0, 2], {"pgd": [1, 3]})
    dataset = record.results.dataset.model_copy(update={"classes": []})
    model = record.results.model.model_copy(update={"metadata": {"classes": ["c", "dog", "o"]}})
    old = replace(record, results=record.results.model_copy(update={"dataset": dataset, "model": model}))
    changes = test_of(compared(answered([0, 2], [0, 2], {"pgd": [0, 2]}), old).pairs[0], "pgd").changes
    assert [(each.label, each.answer) for each in changes] == [("cat", "dog"), ("owl", "class 3")]


def test_an_answer_that_is_not_finite_has_a_name() -> None:
    before, after = answered([0], [0], {"pgd": [0]}), answered([0], [-1], {"pgd": [-1]}, model="b.onnx")
    (change,) = test_of(compared(before, after).pairs[0], "clean").changes
    assert (change.reference_answer, change.answer) == ("cat", "no finite answer")


def test_by_class() -> None:
    label = [0] * 4 + [2] * 3
    before = answered(label, label, {"pgd": [0, 0, 0, 1, 2, 2, 1]})
    after = answered(label, label, {"pgd": [0, 1, 1, 1, 2, 2, 2]}, model="b.onnx")
    cat, owl = test_of(compared(before, after).pairs[0], "pgd").classes
    assert (cat.class_, cat.n, cat.reference_right, cat.right, cat.difference) == ("cat", 4, 3, 1, -0.5)
    assert (owl.class_, owl.n, owl.reference_right, owl.right) == ("owl", 3, 2, 3)
    # 0 won and 2 lost of 4: (1/2 - 5/2) / 6 +- 1.959964 * sqrt(3 - 4 / 6) / 6
    half = 1.959964 * math.sqrt(3 - 4 / 6) / 6
    assert cat.ci95 == pytest.approx((-1 / 3 - half, -1 / 3 + half))


def test_what_survives_in_each_and_in_all() -> None:
    one, two, three = cats([0, 1, 2, 3]), cats([0, 1, 2, 9], model="b.onnx"), cats([2, 3, 8], model="c.onnx")
    found = compared(one, two, three)
    clean, pgd = found.survival
    assert (clean.name, clean.reference_right, [each.share for each in clean.results]) == ("clean", N, [1.0, 1.0])
    assert (pgd.name, pgd.eps, pgd.n, pgd.reference_right) == ("pgd", 0.1, N, 4)
    assert [(each.result, each.right, each.kept, each.share) for each in pgd.results] == [
        (2, 4, 3, 0.75),
        (3, 3, 2, 0.5),
    ]
    assert (pgd.in_all.kept, pgd.in_all.right, pgd.in_all.share) == (1, 1, 0.25)
    none = compared(cats([]), cats([1], model="b.onnx")).survival[1]
    assert (none.reference_right, none.in_all.share, none.in_all.ci95) == (0, None, (0.0, 1.0))


def test_only_the_images_that_all_saw() -> None:
    """One saw more, in another order; the row of a third looked at the first two only."""
    label = [0, 1, 2, 0, 1, 2]
    many = answered(label, label, {"pgd": [0, 1, 2, 1, 1, 2]}, index=[5, 4, 3, 2, 1, 0])
    few = answered([2, 1, 0, 2], [2, 1, 0, 2], {"pgd": [2, 1, 0, 1]}, index=[0, 1, 2, 3], model="b.onnx")
    found = compared(many, few)
    assert found.images.n == 4
    assert found.notes[0] == "a.onnx saw 6 images: everything here is of the 4 that all saw"
    test = test_of(found.pairs[0], "pgd")
    assert (test.n, [(each.index, each.change) for each in test.changes]) == (4, [(2, "won"), (3, "lost")])
    first = answered([2, 1, 0, 2], [2, 1, 0, 2], {"pgd": [2, 2]}, index=[0, 1, 2, 3], model="c.onnx")
    cut = compared(many, first)
    test = test_of(cut.pairs[0], "pgd")
    assert (test.n, test.lost, [each.index for each in test.changes]) == (2, 1, [1])
    assert [each.name for each in cut.survival] == ["clean"]  # no row is answered for all images
    assert cut.pairs[0].headlines == ["pgd", "clean"]


def test_rows_that_are_not_compared_are_named() -> None:
    rows = [row("pgd"), row("fgsm"), row("square", status="failed", reason="no memory"), row("cw2", None)]
    before = answered([0], [0], {"pgd": [0], "fgsm": [0]}, rows)
    after = answered([0], [0], {"pgd": [0], "square": [0]}, [row("pgd"), row("square"), row("apgd")], model="b.onnx")
    (pair,) = compared(before, after).pairs
    assert [test.name for test in pair.tests] == ["clean", "pgd"]
    assert {each.row: each.reason for each in pair.uncompared} == {
        "fgsm": "only in the reference",
        "square": "failed in the reference: no memory",
        "apgd": "only in the other",
        "cw2": "looks for the nearest adversarial image, so it has no robust accuracy",
    }


def test_a_row_is_found_by_its_question() -> None:
    """`pgd` of one radius is `pgd@8/255` of two."""
    one = answered([0], [0], {"pgd": [0]}, [row("pgd", 8 / 255)])
    both = [row("pgd@4/255", 4 / 255), row("pgd@8/255", 8 / 255)]
    two = answered([0], [0], {"pgd@4/255": [0], "pgd@8/255": [1]}, both, model="b.onnx")
    (pair,) = compared(one, two).pairs
    assert [(test.name, test.lost) for test in pair.tests] == [("clean", 0), ("pgd", 1)]
    assert pair.headlines == ["pgd", "clean"]  # of one attack: the row is the worst case
    assert [each.row for each in pair.uncompared] == ["pgd@4/255"]
    assert compared(two, one).pairs[0].headlines == ["pgd@8/255", "clean"]
    curve = compared(two, replace(two, results=one.results.model_copy(update={"attacks": two.results.attacks})))
    assert curve.pairs[0].headlines == ["pgd@8/255", "pgd@4/255", "clean"]


def test_what_is_refused() -> None:
    base = answered([0, 1, 2], [0, 1, 2], {"pgd": [0, 1, 2]})
    other = "other.onnx"
    moved = replace(base, image=base.image + np.array([0, 1, 1], dtype=np.uint64))
    steps = [answered([0], [0], {"pgd": [0]}, [row(params={"steps": number})], model=other) for number in (10, 50)]
    lower = [
        answered([0], [0], {"pgd": [0]}, [row(params=params)], model=other)
        for params in ({}, {"search_precision": "bf16"})
    ]
    for records, message in [
        ((base, answered([0], [0], {"pgd": [0]}, dataset="birds")), "'1.json' is of pets test, '2.json' of birds test"),
        (
            (base, answered([0], [0], {"fgsm": [0]}, [row("fgsm", norm="l2")])),
            "'1.json' has pgd linf 0.1, '2.json' fgsm l2 0.1: no row is the same",
        ),
        ((base, answered([0], [0], {"pgd": [0]}, [row(eps=0.2)])), "has pgd linf 0.1, '2.json' pgd linf 0.2: no row"),
        ((steps[0], steps[1]), "'1.json' ran pgd with steps 10, '2.json' with 50"),
        ((lower[0], lower[1]), "'1.json' ran pgd with search_precision fp32, '2.json' with bf16"),
        ((base, moved), "'1.json' saw other images or labels than '2.json' under 2 of 3 shared places of pets test"),
        ((base, answered([0, 1, 2], [0, 1, 2], {"pgd": [0, 1, 2]}, index=[7, 8, 9])), "saw none of these images"),
        (
            (base, answered([1, 2, 0, 0], [1, 2, 0, 0], {"pgd": [1, 2, 0, 0]}, index=[1, 2, 3, 4])),
            "'1.json' saw 3 images and '2.json' 4: they share 2",
        ),
        ((base, base, answered([2, 0], [2, 0], {"pgd": [2, 0]}, index=[2, 3])), "'3.json' saw 2 images and '1.json' 3"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            compared(*records)
        assert caught.value.hint
        assert ("--search-precision fp32" in caught.value.hint) == (records[0] is lower[0])
        assert "\n" not in str(caught.value)


def test_what_to_know_before_the_figures() -> None:
    one = answered([0], [0], {"t": [0]}, [row("t", surrogate="net")], verdict="unreliable")
    two = answered([0], [0], {"t": [0]}, [row("t", surrogate="net")], seed=3)
    assert compared(one, two).notes == [
        "the checks of a.onnx [1] found something to doubt (unreliable): the twin differs",
        "a.onnx [1] and a.onnx [2] are the same file: what differs is how it was attacked",
        "the seeds differ: a.onnx [1] 0, a.onnx [2] 3",
        "surrogates are told apart by their names only: net",
    ]
    assert [each.verdict for each in compared(one, two).results] == ["unreliable", "high"]


def test_int8_looks_more_robust_than_it_is() -> None:
    whole, other = cats([0, 1]), cats([0, 1], model="s 8.onnx")
    model = other.results.model.model_copy(update={"metadata": {"precision": "int8"}})
    int8 = replace(other, results=other.results.model_copy(update={"model": model}))
    assert compared(whole, other).notes == []
    assert compared(whole, int8).notes == [
        "INT8 hides gradients and small gains, so s 8.onnx looks a little more robust than it is: attack it by way of "
        "the float file too: dgad attack --model 's 8.onnx' --attack autoattack-max --sibling FLOAT.onnx"
    ]
    item = Item("quantised", "high", "a sibling was searched on")
    checks = other.results.checks.model_copy(update={"items": [item]})
    seen = replace(int8, results=int8.results.model_copy(update={"checks": checks}))
    assert compared(whole, seen).notes == []
    assert "so s 8.onnx [1], s 8.onnx [2] look a little" in " ".join(compared(int8, int8).notes)


def test_a_row_of_none_of_the_shared_images_is_named() -> None:
    """Each of the two looked at one image, and not at the same one."""
    one = answered([0, 1], [0, 1], {"pgd": [0, 1], "square": [0]}, [row("pgd"), row("square")])
    two = answered([1, 0], [1, 0], {"pgd": [1, 0], "square": [1]}, [row("pgd"), row("square")], index=[1, 0])
    (pair,) = compared(one, two).pairs
    assert [test.name for test in pair.tests] == ["clean", "pgd"]
    assert [(each.row, each.reason) for each in pair.uncompared] == [
        ("square", "the two looked at none of these images both")
    ]


def test_two_classes_of_one_name_are_two() -> None:
    label, names = [0, 1, 2, 2], ("cat", "owl", "owl")
    before = answered(label, label, {"pgd": [0, 1, 2, 2]}, classes=names)
    after = answered(label, label, {"pgd": [0, 0, 2, 2]}, classes=names, model="b.onnx")
    test = test_of(compared(before, after).pairs[0], "pgd")
    assert [(each.class_, each.n, each.right) for each in test.classes] == [
        ("cat", 1, 1),
        ("owl [1]", 1, 0),
        ("owl [2]", 2, 2),
    ]
    assert test.changes[0].label == "owl [1]"


def test_names_are_as_long_as_they_must_be() -> None:
    assert short_names(["a/student.onnx", "b/int8.onnx"]) == ["student.onnx", "int8.onnx"]
    assert short_names(["x/a/s.onnx", "x/b/s.onnx", "t.onnx"]) == ["a/s.onnx", "b/s.onnx", "t.onnx"]
    assert short_names(["s.onnx", "a/s.onnx"]) == ["s.onnx [1]", "a/s.onnx"]
    assert short_names(["s.onnx", "s.onnx", ""]) == ["s.onnx [1]", "s.onnx [2]", "."]
    assert short_names(["a\n\x1b[31m.onnx", "b"]) == [r"a\n\x1b[31m.onnx", "b"]
    first, second = short_names(["x" * 300 + "1.onnx", "x" * 300 + "2.onnx"])
    assert len(first) == LONGEST + len(" [1]")
    assert (first[:3], first[-10:], second[-10:]) == ("...", "1.onnx [1]", "2.onnx [2]")


def test_figures_in_words() -> None:
    assert [p_text(p) for p in (1.0, 0.999, 0.11, 0.0996, 0.031, 0.0099, 0.00012, 0.0)] == [
        "1",
        "1",
        "0.11",
        "0.10",
        "0.031",
        "0.0099",
        "0.0001",
        "<0.0001",
    ]
    assert [decimal(share) for share in (-0.012, 0.0, -1e-12, 0.0003, -0.0003, 1.0)] == [
        "-1.2",
        "0.0",
        "0.0",
        "0.03",
        "-0.03",
        "100.0",
    ]
