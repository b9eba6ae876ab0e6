"""Thresholds, baselines and JUnit XML, on linear models whose robust accuracy is known in closed form."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sample_results import row as attacked_row
from sample_results import sample
from shared import Run, runner
from victims import TwoClassLinear, as_torch, linear_split

from cli.flags.demands import rate_of
from dgad_tk.common import UserError
from dgad_tk.data import Split
from evaluators.attacks import ATTACKS
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import Row, Surrogate, plan
from evaluators.report.files import fingerprints, results, write
from evaluators.report.junit import write_junit
from evaluators.results import Attack, Checks, Gate, Item, Results, read_results
from evaluators.verdict.baseline import compare, uncompared
from evaluators.verdict.gate import thresholds
from evaluators.verdict.records import Record, read_record


@pytest.fixture
def dgad(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def linear(shift: float = 0.0) -> TwoClassLinear:
    """The linear model, its boundary moved."""
    module = TwoClassLinear().requires_grad_(False)
    module.b += shift
    return module


N = 40
IMAGES = linear_split(N).take(slice(None)) / np.float32(255)
MARGINS = linear().margins(IMAGES, "linf")
EPS = float(np.median(MARGINS))
"""Between the 20th and the 21st margin: PGD breaks 20 of 40, exactly."""
NONE = Surrogate("absent", None, "there is none")


def run(
    names: tuple[str, ...] = ("fgsm", "pgd"),
    *,
    eps: tuple[float, ...] = (EPS,),
    split: Split | None = None,
    wrong: int = 0,
    shift: float = 0.0,
    surrogates: tuple[Surrogate, ...] = (),
    settings: Any = None,
    norm: Any = "linf",
) -> tuple[Evaluation, Results]:
    """The linear model, its boundary moved by `shift`, on images of which it gets `wrong` wrong."""
    split = split or linear_split(N)
    labels = split.labels.copy()
    labels[:wrong] = 1 - labels[:wrong]
    rows = plan(names, norm=norm, eps=eps, surrogates=surrogates, settings=settings)
    evaluation = evaluate(as_torch(linear(shift)), replace(split, labels=labels), rows, batch_size=N)
    return evaluation, results(evaluation, command="dgad attack", dataset="linear", split="test")


def written(folder: Path, *arguments: Any, **options: Any) -> Path:
    """The folder of such an evaluation."""
    write(*run(*arguments, **options), folder)
    return folder


def failed(found: Results, reason: str) -> Results:
    """The same, but its first row has failed."""
    first = Attack(**{**dict(found.attacks[0]), "status": "failed", "reason": reason, "robust": None})
    return found.model_copy(update={"attacks": [first, *found.attacks[1:]]})


def asking(found: Results, rows: Sequence[Row], **status: Any) -> Results:
    """The same, with rows of which nothing is known."""
    attacks = [
        Attack(
            id=row.id,
            name=row.attack,
            kind=row.spec.kind,
            source=row.source,
            surrogate=row.surrogate.name if row.surrogate else None,
            norm=row.norm,
            eps=row.eps,
            params=dict(row.params),
            **{"n": N, "status": "skipped", "reason": "", **status},
        )
        for row in rows
    ]
    return found.model_copy(update={"attacks": attacks, "worst_case": []})


def asked(found: Results, **least: str) -> list[Gate]:
    return thresholds({key.replace("worst", "worst-case"): rate_of(rate, key) for key, rate in least.items()}, found)


@pytest.mark.parametrize(
    ("text", "rate"), [("45%", "9/20"), ("0.45", "9/20"), ("0", "0"), ("100%", "1"), ("1.0", "1"), (".5", "1/2")]
)
def test_rates(text: str, rate: str) -> None:
    assert rate_of(text, "--max-drop") == Fraction(rate)


@pytest.mark.parametrize("text", ["45", "1", "1.5", "-1%", "101%", "", "%", "nan", "inf", "4e-1", "9/20", "٤٥%", "a%"])
def test_no_rates(text: str) -> None:
    with pytest.raises(UserError, match="--max-drop must be") as caught:
        rate_of(text, "--max-drop")
    assert caught.value.hint


def test_flags_that_contradict_themselves(dgad: Run, tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("a letter")
    (tmp_path / "theirs").mkdir()
    folder = written(tmp_path / "ours", ("pgd",))
    for arguments, message in [
        (["--min", "pgd"], "--min needs KEY=RATE, got 'pgd'"),
        (["--min", "=45%"], "--min needs KEY=RATE"),
        (["--min", "pgd=45"], "--min pgd must be a rate such as 45% or 0.45, got '45'"),
        (["--min", "pgd=45%", "--min", "pgd=40%"], "--min is given twice for 'pgd'"),
        (["--max-drop", "1%"], "--max-drop is given, but no --baseline"),
        (["--baseline", tmp_path / "none.json"], "no such file: "),
        (["--baseline", tmp_path / "theirs"], "no such file: "),
        (["--junit", tmp_path], "is a folder"),
        (["--junit", tmp_path / "theirs.txt"], "exists and is no JUnit XML"),
        (["--json"], "nothing is demanded"),
        (["--min", "pdg=1%"], "is called 'pdg'"),
    ]:
        code, out, err = dgad("gate", folder, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 2), err
        assert message in err
        assert "hint: " in err
    assert (tmp_path / "theirs.txt").read_text() == "a letter"


def test_what_a_key_means() -> None:
    twins = tuple(Surrogate(name, None, "") for name in ("resnet8", "a=b", "odd@home"))
    rows = plan(["fgsm", "pgd", "cw2", "transfer:pgd"], norm="linf", eps=[4 / 255, 0.1], surrogates=twins)
    _, found = run(("fgsm",))
    curve = asking(found, rows)
    for key, ids in {
        "clean": "clean",
        "pgd": "pgd@4/255 pgd@0.1",
        "pgd@4/255": "pgd@4/255",
        "pgd@0.1000": "pgd@0.1",
        "transfer:pgd": "transfer:resnet8:pgd@4/255 transfer:resnet8:pgd@0.1 transfer:a=b:pgd@4/255 "
        "transfer:a=b:pgd@0.1 transfer:odd@home:pgd@4/255 transfer:odd@home:pgd@0.1",
        "transfer:odd@home:pgd": "transfer:odd@home:pgd@4/255 transfer:odd@home:pgd@0.1",
        "transfer:a=b:pgd@4/255": "transfer:a=b:pgd@4/255",
        "transfer:pgd@0.1": "transfer:resnet8:pgd@0.1 transfer:a=b:pgd@0.1 transfer:odd@home:pgd@0.1",
        "worst-case": "worst-case@4/255 worst-case@0.1",
        "worst-case@0.1": "worst-case@0.1",
    }.items():
        assert [gate.name for gate in thresholds({key: Fraction(1, 2)}, curve)] == ids.split(), key
    single = asking(found, plan(["pgd"], norm="linf", eps=[8 / 255]))
    assert [gate.name for gate in thresholds({"pgd@8/255": Fraction(1)}, single)] == ["pgd"]  # there, the id is `pgd`
    for key, hint in {
        "pdg": "did you mean 'pgd'",
        "pgd@8/255": "did you mean 'pgd@4/255'",
        "clean@0.1": "did you mean 'clean'",
        "worstcase": "did you mean 'worst-case'",
        "transfer:resnet20:pgd": "did you mean 'transfer:resnet8:pgd'",
        "transfer:fgsm": "did you mean 'transfer:pgd'",
    }.items():
        with pytest.raises(UserError, match=f"no row of .* is called '{key}'") as caught:
            thresholds({key: Fraction(1)}, curve)
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="'cw2': cw2 looks for the nearest adversarial image"):
        thresholds({"cw2": Fraction(1)}, curve)
    with pytest.raises(UserError, match="is called 'worst-case'"):
        thresholds({"worst-case": Fraction(1)}, asking(found, plan(["cw2"], norm="linf", eps=[0.1])))


def test_a_worst_case_needs_an_attack_on_all_images() -> None:
    """A slow attack sees the first images only, which says nothing of the others."""
    _, found = run(("fgsm",))
    few = [row.model_copy(update={"n": 1}) for row in found.attacks]
    (gate,) = thresholds({"worst-case": Fraction(0)}, found.model_copy(update={"attacks": few, "worst_case": []}))
    assert (gate.name, gate.passed, gate.got) == ("worst-case", False, "no answer")


def test_thresholds_are_met_to_the_image() -> None:
    """Half of the images are broken; three are wrong from the start, of which some would have been broken."""
    _, found = run(wrong=3)
    robust = int((MARGINS[3:] > EPS).sum())
    exact = f"{robust / N:.3f}"
    assert rate_of(exact, "") == Fraction(robust, N)
    for gate in asked(found, clean="92.5%", pgd=exact, worst=exact):
        assert gate.passed, gate
    assert asked(found, clean="92.5%")[0].got == "92.5% (37 of 40)"
    for gate in asked(found, clean="92.500001%", pgd=f"{exact}0001", worst=f"{exact}0001"):
        assert not gate.passed
    (gate,) = asked(found, pgd="0.9")
    assert found.attacks[1].ci95 is not None
    low, high = found.attacks[1].ci95
    assert gate.required == "at least 90%"
    assert gate.detail == f"95 % interval {low:.1%} to {high:.1%}"
    (gate,) = asked(found, pgd="0.45")
    assert gate.detail.endswith("; too few images to be sure")
    doubted = found.model_copy(update={"checks": Checks(verdict="unreliable", items=[])})
    assert asked(doubted, clean="1%")[0].detail == "the evaluation is unreliable"


def test_what_did_not_run_fails() -> None:
    _, found = run(("fgsm", "transfer:fgsm"), surrogates=(NONE,))
    skipped, worst = thresholds({"transfer:fgsm": Fraction(0), "worst-case": Fraction(0)}, found)
    assert (skipped.passed, skipped.got, skipped.detail) == (False, "skipped", "there is none")
    # No surrogate fits: that is no fault of the model, and the worst case of the others stands.
    assert worst.passed
    assert "without transfer:absent:fgsm" in worst.detail
    cut = failed(found, "stopped at image 12")
    fgsm, worst = thresholds({"fgsm": Fraction(0), "worst-case": Fraction(0)}, cut)
    assert (fgsm.passed, fgsm.got, fgsm.detail) == (False, "failed", "stopped at image 12")
    assert (worst.passed, worst.detail) == (False, "fgsm: stopped at image 12")
    _, found = run(("transfer:fgsm",), surrogates=(NONE,))
    (worst,) = thresholds({"worst-case": Fraction(0)}, found)
    assert (worst.passed, worst.got, worst.detail) == (False, "skipped", "transfer:absent:fgsm: there is none")


@pytest.fixture(scope="module")
def template() -> Results:
    return run(("pgd",))[1]


def record(template: Results, answers: np.ndarray, **entry: Any) -> Record:
    """Of an evaluation with one row, pgd, all of whose clean predictions are right."""
    n = entry.get("n", len(answers))
    done = {"status": "done", "n": n, **entry}
    found = asking(template, plan(["pgd"], norm="linf", eps=[0.1]), **done)
    index = np.arange(len(answers))
    robust = {"pgd": answers[:n]} if done["status"] == "done" else {}
    attacked = {key: (~held).astype(np.int64) for key, held in robust.items()}
    zeros, right = np.zeros_like(index), np.ones(len(answers), dtype=bool)
    return Record(found, index, index.astype(np.uint64), right, robust, zeros, zeros, attacked)


def outcomes(n: int, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Now and before, bool `(n,)`."""
    before = np.arange(n) < n // 2
    now = before.copy()
    now[:lost] = False
    now[n - won :] = True
    return now, before


@pytest.mark.parametrize(
    ("lost", "won", "max_drop", "passed", "p"),
    [
        (10, 0, None, False, 2 * 2**-10),
        (5, 0, None, True, 2 * 2**-5),  # 0.0625
        (6, 0, None, False, 2 * 2**-6),  # 0.031
        (0, 50, None, True, 2 * 2**-50),  # it has become better
        (2, 1, None, True, 1.0),
        (0, 0, None, True, 1.0),
        (10, 0, "1%", True, 2 * 2**-10),  # real, but allowed: exactly 1 % of 1,000
        (11, 0, "1%", False, 2 * 2**-11),
        (11, 1, "1%", True, 2 * 13 * 2**-12),
        (1, 0, "0", False, 1.0),  # within chance, but not allowed
        (1, 1, "0", True, 1.0),
    ],
)
def test_a_drop(template: Results, lost: int, won: int, max_drop: str | None, passed: bool, p: float) -> None:
    """The exact test by hand: k of one kind among m discordant images is a coin thrown m times."""
    now, before = outcomes(1000, lost, won)
    allowed = None if max_drop is None else rate_of(max_drop, "")
    clean, found = compare(record(template, now), record(template, before), allowed)
    assert (clean.name, clean.passed, clean.got) == ("baseline:clean", True, "100.0% after 100.0%, no change")
    assert (found.name, found.passed) == ("baseline:pgd", passed)
    assert f"lost {lost} and won {won} of 1,000 images, McNemar p = {p:.2g};" in found.detail
    assert found.detail.endswith("within chance") == (lost != won and p >= 0.05)
    if lost > won:
        assert f"a drop of {(lost - won) / 1000:.2%}" in found.got
    if won > lost:
        assert f"a rise of {(won - lost) / 1000:.2%}" in found.got


def test_only_images_that_both_saw_are_compared(template: Results) -> None:
    now, before = outcomes(100, 4, 0)
    shorter = compare(record(template, now[:50]), record(template, before), None)[1]
    assert "lost 4 and won 0 of 50 images" in shorter.detail
    shuffled = np.random.default_rng(0).permutation(100)
    old = record(template, before)
    mixed = replace(
        old,
        index=old.index[shuffled],
        image=old.image[shuffled],
        clean=old.clean[shuffled],
        robust={key: robust[shuffled] for key, robust in old.robust.items()},
    )
    assert compare(record(template, now), mixed, None) == compare(record(template, now), old, None)
    # A row that was cut to its first 20 images says nothing about the others.
    assert "of 20 images" in compare(record(template, now, n=20), old, None)[1].detail

    def two(each: Record, asked: int) -> Record:
        """A second row of the same outcome."""
        (pgd,) = each.results.attacks
        square = pgd.model_copy(update={"id": "square", "name": "square", "n": asked})
        both = each.results.model_copy(update={"attacks": [pgd, square]})
        return replace(each, results=both, robust={**each.robust, "square": each.robust["pgd"][:asked]})

    assert compare(two(record(template, now), 100), two(old, 100), None)[-1].name == "baseline:worst-case"
    assert compare(two(record(template, now), 20), two(old, 100), None)[-1].name == "baseline:square"
    with pytest.raises(UserError, match="saw other images or labels"):
        compare(record(template, now), replace(old, image=old.image + np.uint64(1)), None)


def test_the_worst_case_is_over_the_rows_up_to_its_radius(template: Results) -> None:
    """Of ten images, square at the small radius broke one that nothing broke at the large radius."""

    def at_two_radii(square: list[int]) -> Record:
        answers = {"pgd@0.1": [0], "square@0.1": square, "pgd@0.2": [0, 1], "square@0.2": [1]}
        rows = plan(["pgd", "square"], norm="linf", eps=[0.1, 0.2])
        base = record(template, np.ones(10, dtype=bool))
        robust = {row.id: np.array([at not in answers[row.id] for at in range(10)]) for row in rows}
        done = asking(template, rows, status="done").attacks
        filled = [row.model_copy(update={"n": 10}) for row in done]
        return replace(base, results=base.results.model_copy(update={"attacks": filled}), robust=robust)

    gates = {each.name: each for each in compare(at_two_radii([9]), at_two_radii([]), None)}
    assert gates["baseline:worst-case@0.1"].got == "80.0% after 90.0%, a drop of 10.00%"
    assert gates["baseline:worst-case@0.2"].got == "70.0% after 80.0%, a drop of 10.00%"


def test_a_row_that_is_missing_at_a_smaller_radius_is_missing_in_the_worst_case() -> None:
    _, found = run(eps=(EPS, 2 * EPS))
    least = {"worst-case": Fraction(0)}
    assert [gate.passed for gate in thresholds(least, found)] == [True, True]
    assert [gate.passed for gate in thresholds(least, failed(found, "no memory"))] == [False, False]


def test_rows_without_an_answer(template: Results) -> None:
    now, before = outcomes(100, 0, 0)
    gone = record(template, now, status="skipped", reason="no memory")
    result = compare(gone, record(template, before), Fraction(1))[1]
    assert (result.passed, result.got, result.detail) == (False, "no answer", "skipped: no memory")
    assert [each.name for each in compare(record(template, now), gone, None)] == ["baseline:clean"]
    assert uncompared(record(template, now), gone) == ["pgd"]
    assert uncompared(gone, record(template, now)) == []


def test_baseline_from_its_files(tmp_path: Path) -> None:
    """The model and its neighbour with another bias; both robust accuracies in closed form."""
    old = read_record(written(tmp_path / "old") / "results.json")
    new = read_record(written(tmp_path / "new", shift=0.4))
    assert (old.results.dataset.name, old.results.dataset.split) == ("linear", "test")
    moved = linear(0.4)
    margins = moved.margins(IMAGES, "linf")
    right = moved(torch.from_numpy(IMAGES)).argmax(1).numpy() == linear_split(N).labels
    now, before = right & (margins > EPS), MARGINS > EPS
    found = compare(new, old, Fraction(0))
    assert [each.name for each in found] == ["baseline:clean", "baseline:fgsm", "baseline:pgd", "baseline:worst-case"]
    lost, won = int((before & ~now).sum()), int((now & ~before).sum())
    assert lost + won > 3
    for result in found[1:]:
        assert f"lost {lost} and won {won} of 40" in result.detail
        assert result.passed == (lost <= won)


def test_a_row_of_the_first_images_has_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(ATTACKS["pgd"], params={**ATTACKS["pgd"].params, "samples": 20})
    monkeypatch.setitem(ATTACKS, "few", few)
    record = read_record(written(tmp_path, ("fgsm", "few")))
    assert record.robust["few"].shape == (20,)
    assert "of 20 images" in compare(record, record, None)[-1].detail


def test_baseline_of_something_else(tmp_path: Path) -> None:
    old, split = read_record(written(tmp_path)), linear_split(N)

    def asked(*names: str, norm: Any = "linf", eps: float = EPS, settings: Any = None) -> Record:
        """The same images, asked something else."""
        rows = plan(names, norm=norm, eps=[eps], settings=settings)
        return replace(old, results=asking(old.results, rows), robust={})

    def seen(images: Split) -> Record:
        return replace(old, index=images.index, image=fingerprints(images))

    at, elsewhere = f"{EPS:.4g}", old.results.dataset.model_copy(update={"name": "digits"})
    few = split.subset(10)
    compare(replace(old, index=few.index, image=fingerprints(few)), old, None)
    other = replace(split, base=255 - split.base)
    beyond = Split(np.tile(split.base, (2, 1, 1, 1)), split.index + N, split.labels)
    for new, message in [
        (
            replace(old, results=old.results.model_copy(update={"dataset": elsewhere})),
            "--baseline is of linear test, this evaluation of digits test",
        ),
        (asked("pgd", norm="l2"), f"--baseline has fgsm linf {at}, pgd linf {at}, this evaluation pgd l2 {at}: no row"),
        (asked("pgd", eps=0.5), f"pgd linf {at}, this evaluation pgd linf 0.5: no row"),
        (asked("square"), f"has fgsm linf {at}, pgd linf {at}, this evaluation square linf {at}: no row"),
        (asked("cw2"), "this evaluation none: no row"),
        (asked("pgd", settings={"pgd": {"steps": 50}}), "--baseline ran pgd with steps 10, this evaluation with 50"),
        (seen(other), "saw other images or labels"),
        (seen(replace(split, labels=1 - split.labels)), "saw other images or labels"),
        (seen(beyond), "saw none of these images"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            compare(new, old, None)
        assert caught.value.hint


def test_files_that_are_no_results(tmp_path: Path) -> None:
    written(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("results.json", "samples.npz")}

    def refused(name: str, content: bytes | None, message: str) -> None:
        for each, data in whole.items():
            (tmp_path / each).write_bytes(data)
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read_record(tmp_path / "results.json")
        assert "\n" not in str(caught.value)
        assert caught.value.hint

    refused("results.json", None, "no such file")
    refused("samples.npz", None, "no such file")
    for content in (b"", b"\xff\xfe", b"[]", b"{}", b'{"schema": "dgad/bench/1"}', b"null", b"[" * 10**5):
        refused("results.json", content, "was not written by `dgad attack`")
    refused("samples.npz", b"", "are damaged")
    refused("samples.npz", whole["samples.npz"][:-300], "are damaged")
    refused("results.json", b'{"schema": "dgad/results/1"}', "is damaged: created: Field required")
    refused(
        "results.json", b'{"schema": "dgad/results/2"}', "follows the schema dgad/results/2, expected dgad/results/1"
    )
    edited = json.loads(whole["results.json"])
    edited["attacks"][0]["robust_accuracy"] = "many"
    refused("results.json", json.dumps(edited).encode(), r"is damaged: attacks\.0\.robust_accuracy: ")
    edited = json.loads(whole["results.json"])
    edited["attacks"][0]["id"] = "other"
    refused("results.json", json.dumps(edited).encode(), "are damaged")
    with np.load(tmp_path / "samples.npz") as arrays:
        short = {name: values[:7] if name == "image" else values for name, values in arrays.items()}
    np.savez(tmp_path / "short.npz", **short)
    refused("samples.npz", (tmp_path / "short.npz").read_bytes(), "expected one value for each of 40 images")
    words = {name: values.astype(str) + "x" if name == "label" else values for name, values in short.items()}
    np.savez(tmp_path / "words.npz", **words)
    refused("samples.npz", (tmp_path / "words.npz").read_bytes(), "are damaged")


def test_results_of_an_older_and_of_a_newer_dgad(tmp_path: Path) -> None:
    """What was added since is not there, what will be added is not known; a key that we misspell is an error."""
    folder = written(tmp_path)
    document, found = json.loads((folder / "results.json").read_text()), read_results(folder)
    assert found.to_dict() == document
    for key in ("gates", "uncompared"):
        del document[key]
    for key in ("non_finite", "classes"):
        del document["clean"][key]
    for row in document["attacks"]:
        for key in ("accuracy", "reused", "stages"):
            del row[key]
    del document["worst_case"][0]["classes"]
    document["unheard"] = document["attacks"][0]["of"] = document["checks"]["items"][0]["yet"] = {"a": 1}
    (folder / "results.json").write_text(json.dumps(document))
    old = read_results(folder)
    assert (old.clean.correct, old.clean.classes) == (found.clean.correct, [])
    assert [(row.robust, row.reused) for row in old.attacks] == [(row.robust, 0) for row in found.attacks]
    assert "unheard" not in old.to_dict()
    for part in (found.clean, found.attacks[0], found.checks.items[0]):
        with pytest.raises(ValidationError, match="rouge"):
            type(part)(**{**vars(part), "rouge": 1})


def test_fingerprints_see_every_pixel_and_label() -> None:
    split = linear_split(N)
    whole = fingerprints(split)
    assert len(np.unique(whole)) == N
    assert np.array_equal(fingerprints(split.subset(7)), whole[:7])
    pixels = split.base.copy()
    pixels[3, 0, 5, 5] ^= 1
    assert np.flatnonzero(fingerprints(replace(split, base=pixels)) != whole).tolist() == [3]
    labels = split.labels.copy()
    labels[5] = 1 - labels[5]
    assert np.flatnonzero(fingerprints(replace(split, labels=labels)) != whole).tolist() == [5]


def test_flags_to_exit_code(dgad: Run, tmp_path: Path) -> None:
    """Everything is written before a gate fails, and the results stay as they are."""
    folder, junit = written(tmp_path / "old"), tmp_path / "ci" / "junit.xml"
    before = (folder / "results.json").read_bytes()
    common = ["gate", folder, "--baseline", folder, "--junit", junit]
    code, out, err = dgad(*common, "--min", "clean=100%", "--min", "pgd=0.5", "--max-drop", "0%")
    assert (code, err) == (0, "")
    assert "gate clean passed: 100.0% (40 of 40), required is at least 100%" in out
    assert "gate baseline:worst-case passed: " in out
    junit.unlink()
    code, out, err = dgad(*common, "--min", "pgd=51%", "--min", "worst-case=51%")
    assert (code, err.count("\n")) == (1, 1)
    assert "failed the gate pgd: 50.0% (20 of 40), required is at least 51%; so did 1" in err
    assert "gate pgd FAILED" in out
    assert len(ElementTree.parse(junit).findall(".//failure")) == 2
    code, out, _ = dgad(*common, "--min", "pgd=50%", "--json")  # JUnit XML may be written over
    assert code == 0
    document = json.loads(out)
    assert [gate["name"] for gate in document["gates"]] == [
        *("pgd", "baseline:clean", "baseline:fgsm", "baseline:pgd", "baseline:worst-case")
    ]
    assert dgad("gate", folder, "--junit", junit)[0] == 0  # nothing is demanded, and the rows are shown
    assert (folder / "results.json").read_bytes() == before


def test_several_results_at_once(dgad: Run, tmp_path: Path) -> None:
    """Each has to pass; the second is on images of which it gets three wrong."""
    folders = [written(tmp_path / "one"), written(tmp_path / "two", wrong=3)]
    code, out, err = dgad("gate", *folders, "--min", "clean=95%")
    assert code == 1
    assert [line.split(" (")[0].split(": ", 1)[1] for line in out.splitlines()] == [
        "gate clean passed: 100.0%",
        "gate clean FAILED: 92.5%",
    ]
    assert "so did" not in err
    code, out, _ = dgad("gate", *folders, "--min", "clean=90%", "--json")
    assert (code, [len(each["gates"]) for each in json.loads(out)]) == (0, [1, 1])


def test_a_gate_needs_no_torch(tmp_path: Path) -> None:
    folder = written(tmp_path)
    code = (
        f"import sys; from cli.app import run; folder = {str(folder)!r}; "
        "code = run(['gate', folder, '--min', 'pgd=1%', '--baseline', folder, '--junit', folder + '/junit.xml']); "
        "print([code, *(name for name in ('torch', 'art', 'onnx', 'onnxruntime') if name in sys.modules)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[0]"


def test_the_schema_is_printed(dgad: Run, tmp_path: Path) -> None:
    code, out, _ = dgad("list", "schema")
    schema = json.loads(out)
    document = json.loads((written(tmp_path) / "results.json").read_text())
    assert code == 0
    assert schema["properties"].keys() == document.keys()
    assert schema["$defs"]["CleanClass"]["properties"].keys() == {"class", "n", "correct"}
    assert schema["$defs"]["Attack"]["properties"].keys() == document["attacks"][0].keys()
    assert "Wilson" in schema["$defs"]["Attack"]["properties"]["ci95"]["description"]


SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    # As in the junit-10.xsd that Jenkins publishes: children, attributes that must be there, others that may be.
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": (
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name"},
        {"time", "classname", "group"},
    ),
    "skipped": (set(), set(), {"type", "message"}),
    "error": (set(), set(), {"type", "message"}),
    "failure": (set(), set(), {"type", "message"}),
    "system-out": (set(), set(), set()),
}


def test_junit_follows_the_schema(tmp_path: Path) -> None:
    _, found = run(("fgsm", "pgd", "cw2", "transfer:fgsm"), surrogates=(NONE,))
    gates = [
        Gate("clean", True, "at least 90%", "100%"),
        Gate("pgd", False, "at least 60%", "50%", "95 % interval 40% to 60%"),
    ]
    found = found.model_copy(update={"gates": gates})
    odd = {"model": found.model.model_copy(update={"path": "a<b>&\"\x00\x1b\ud800\uffff'.onnx"})}
    doubted = {"checks": Checks(verdict="unreliable", items=[Item("logits", "warn", "<odd>")])}
    other = failed(found, "killed ]]> \x07").model_copy(update=odd | doubted)
    path = tmp_path / "junit.xml"
    write_junit([found, other], path)

    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    for element in root.iter():
        children, needed, allowed = SCHEMA[element.tag]
        assert {child.tag for child in element} <= children, element.tag
        assert needed <= element.attrib.keys() <= needed | allowed, element.tag
        if element.tag in ("testsuites", "testsuite", "testcase"):
            assert float(element.attrib["time"]) >= 0
            assert element.attrib["time"].replace(".", "", 1).isdigit()
    first, second = root
    assert first.attrib["timestamp"] == found.created.removesuffix("+00:00")
    for suite, tests, failures, errors in ((first, 7, 1, 0), (second, 7, 2, 1)):
        assert [len(suite.findall(f"testcase/{tag}")) for tag in ("failure", "error", "skipped")] == [
            failures,
            errors,
            1,
        ]
        counts = {"tests": str(tests), "failures": str(failures), "errors": str(errors), "skipped": "1"}
        assert counts.items() <= suite.attrib.items()
        assert len(suite.findall("testcase")) == tests
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("14", "3", "1")
    failure = first.find("testcase[@name='pgd']/failure")
    assert failure is not None
    assert failure.attrib["message"] == "pgd: 50%, required is at least 60%"
    assert failure.text == "95 % interval 40% to 60%"
    skipped = first.find("testcase[@name='transfer:absent:fgsm']/skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "there is none"
    assert second.attrib["name"] == "a<b>&\"\ufffd\ufffd\ufffd\ufffd'.onnx"
    believable = second.find("testcase[@name='believable']/failure")
    assert believable is not None
    assert believable.text == "logits: <odd>"


def test_only_autoattack_is_autoattack() -> None:
    """A gate on AutoAttack is not passed by what stands in for it, nor by what contains it."""
    for name, standing in (("autoattack-fast", "near"), ("autoattack-max", "whole")):
        found = sample(attacks=[attacked_row("pgd", 400), attacked_row(name, 384, autoattack=standing)])
        with pytest.raises(
            UserError, match="no row of .* is called 'autoattack' .it did not run: dgad attack --attack"
        ):
            thresholds({"autoattack": Fraction(1, 100)}, found)
        (gate,) = thresholds({name: Fraction(384, 1000)}, found)
        assert gate.passed
