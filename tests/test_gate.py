"""Thresholds, baselines and JUnit XML, on linear models whose robust accuracy is known in closed form."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from victims import TwoClassLinear, as_torch, linear_split

from cli.gate import Demands, check_demands, conclude, demands_of, judge_demands, print_gates, rate_of
from dgad_tk.common import GateError, UserError
from dgad_tk.data import Split
from evaluators import Evaluation, Row, Surrogate, evaluate, plan
from evaluators.baseline import Recorded, check_comparable, compare, fingerprints, read, recorded, uncompared
from evaluators.gate import GateResult, check_keys, thresholds
from evaluators.report import results, samples, write
from evaluators.report.junit import write_junit


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
) -> tuple[Evaluation, dict[str, Any]]:
    """The linear model, its boundary moved by `shift`, on images of which it gets `wrong` wrong."""
    split = split or linear_split(N)
    labels = split.labels.copy()
    labels[:wrong] = 1 - labels[:wrong]
    rows = plan(names, norm=norm, eps=eps, surrogates=surrogates, settings=settings)
    evaluation = evaluate(as_torch(linear(shift)), replace(split, labels=labels), rows, batch_size=N)
    return evaluation, results(evaluation, command="dgad attack", dataset="linear", split="test")


def rows_of(evaluation: Evaluation) -> list[Row]:
    return [outcome.row for outcome in evaluation.outcomes]


def asked(evaluation: Evaluation, document: dict[str, Any], **least: str) -> list[GateResult]:
    demands = {key.replace("worst", "worst-case"): rate_of(rate, key) for key, rate in least.items()}
    return thresholds(demands, rows_of(evaluation), document)


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


def test_flags_that_contradict_themselves(tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("a letter")
    for arguments, message in [
        ((["pgd"], None, None, None), "--fail-under needs KEY=RATE, got 'pgd'"),
        ((["=45%"], None, None, None), "--fail-under needs KEY=RATE"),
        ((["pgd=45"], None, None, None), "--fail-under pgd must be a rate such as 45% or 0.45, got '45'"),
        ((["pgd=45%", "pgd=40%"], None, None, None), "--fail-under is given twice for 'pgd'"),
        (([], None, "1%", None), "--max-drop is given, but no --baseline"),
        (([], tmp_path / "none.json", None, None), "--baseline: no such file"),
        (([], None, None, tmp_path), "is a folder"),
        (([], None, None, tmp_path / "theirs.txt"), "exists and is no JUnit XML"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            demands_of(*arguments)
        assert caught.value.hint
    assert demands_of(["transfer:a=b:pgd@4/255=45%"], None, None, None).least == {
        "transfer:a=b:pgd@4/255": Fraction(9, 20)
    }


def test_what_a_key_means() -> None:
    twins = tuple(Surrogate(name, None, "") for name in ("resnet8", "odd@home"))
    rows = plan(["fgsm", "pgd", "cw2", "transfer:pgd"], norm="linf", eps=[4 / 255, 0.1], surrogates=twins)
    document: dict[str, Any] = {
        "checks": {"verdict": "high"},
        "worst_case": [],
        "attacks": [{"id": row.id, "status": "skipped", "reason": "", "source": row.source} for row in rows],
    }
    for key, ids in {
        "pgd": "pgd@4/255 pgd@0.1",
        "pgd@4/255": "pgd@4/255",
        "pgd@0.1000": "pgd@0.1",
        "transfer:pgd": "transfer:resnet8:pgd@4/255 transfer:resnet8:pgd@0.1 "
        "transfer:odd@home:pgd@4/255 transfer:odd@home:pgd@0.1",
        "transfer:odd@home:pgd": "transfer:odd@home:pgd@4/255 transfer:odd@home:pgd@0.1",
        "transfer:pgd@0.1": "transfer:resnet8:pgd@0.1 transfer:odd@home:pgd@0.1",
        "worst-case": "worst-case@4/255 worst-case@0.1",
        "worst-case@0.1": "worst-case@0.1",
    }.items():
        least = {key: Fraction(1, 2)}
        check_keys(least, rows)
        assert [result.name for result in thresholds(least, rows, document)] == ids.split(), key
    check_keys({"clean": Fraction(1)}, rows)
    check_keys({"pgd@8/255": Fraction(1)}, plan(["pgd"], norm="linf", eps=[8 / 255]))  # there, the id is plain `pgd`
    for key, hint in {
        "pdg": "did you mean 'pgd'",
        "pgd@8/255": "did you mean 'pgd@4/255'",
        "clean@0.1": "did you mean 'clean'",
        "worstcase": "did you mean 'worst-case'",
        "transfer:resnet20:pgd": "did you mean 'transfer:resnet8:pgd'",
        "transfer:fgsm": "did you mean 'transfer:pgd'",
    }.items():
        with pytest.raises(UserError, match=f"no row is called '{key}'") as caught:
            check_keys({key: Fraction(1)}, rows)
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="'cw2': cw2 looks for the nearest adversarial image"):
        check_keys({"cw2": Fraction(1)}, rows)
    with pytest.raises(UserError, match="no row is called 'worst-case'"):
        check_keys({"worst-case": Fraction(1)}, plan(["cw2"], norm="linf", eps=[0.1]))


def test_thresholds_are_met_to_the_image() -> None:
    """Half of the images are broken; three are wrong from the start, of which some would have been broken."""
    evaluation, document = run(wrong=3)
    robust = int((MARGINS[3:] > EPS).sum())
    exact = f"{robust / N:.3f}"
    assert rate_of(exact, "") == Fraction(robust, N)
    for result in asked(evaluation, document, clean="92.5%", pgd=exact, worst=exact):
        assert result.passed, result
    assert asked(evaluation, document, clean="92.5%")[0].got == "92.5% (37 of 40)"
    for result in asked(evaluation, document, clean="92.500001%", pgd=f"{exact}0001", worst=f"{exact}0001"):
        assert not result.passed
    (result,) = asked(evaluation, document, pgd="0.9")
    low, high = document["attacks"][1]["ci95"]
    assert result.required == "at least 90%"
    assert result.detail == f"95 % interval {low:.1%} to {high:.1%}"
    (result,) = asked(evaluation, document, pgd="0.45")
    assert result.detail.endswith("; too few images to be sure")
    document["checks"]["verdict"] = "unreliable"
    assert asked(evaluation, document, clean="1%")[0].detail == "the evaluation is unreliable"


def test_what_did_not_run_fails() -> None:
    evaluation, document = run(("fgsm", "transfer:fgsm"), surrogates=(NONE,))
    demands = {"transfer:fgsm": Fraction(0), "worst-case": Fraction(0)}
    skipped, worst = thresholds(demands, rows_of(evaluation), document)
    assert (skipped.passed, skipped.got, skipped.detail) == (False, "skipped", "there is none")
    # No surrogate fits: that is no fault of the model, and the worst case of the others stands.
    assert worst.passed
    assert "without transfer:absent:fgsm" in worst.detail
    document["attacks"][0] |= {"status": "interrupted", "reason": "stopped at image 12"}
    fgsm, worst = thresholds({"fgsm": Fraction(0), "worst-case": Fraction(0)}, rows_of(evaluation), document)
    assert (fgsm.passed, fgsm.got, fgsm.detail) == (False, "interrupted", "stopped at image 12")
    assert (worst.passed, worst.detail) == (False, "fgsm: stopped at image 12")
    evaluation, document = run(("transfer:fgsm",), surrogates=(NONE,))
    (worst,) = thresholds({"worst-case": Fraction(0)}, rows_of(evaluation), document)
    assert (worst.passed, worst.got, worst.detail) == (False, "skipped", "transfer:absent:fgsm: there is none")


def record(answers: np.ndarray, *, start: int = 0, clean: np.ndarray | None = None, **entry: Any) -> Recorded:
    """Of an evaluation with one row, pgd."""
    n = len(answers)
    index = np.arange(start, start + n)
    right = np.ones(n, dtype=bool) if clean is None else clean
    row = {"id": "pgd", "name": "pgd", "surrogate": None, "norm": "linf", "eps": 0.1, "params": {"steps": 10}, "n": n}
    row |= {"status": "done", "reason": "", **entry}
    document = {"dataset": {"name": "linear", "split": "test"}, "attacks": [row]}
    zeros = np.zeros(n, dtype=np.int64)
    image = index.astype(np.uint64)
    clean_pred = np.where(right, 0, 1)
    return recorded(
        document, {"index": index, "image": image, "label": zeros, "clean_pred": clean_pred, "robust/pgd": answers}
    )


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
def test_a_drop(lost: int, won: int, max_drop: str | None, passed: bool, p: float) -> None:
    """The exact test by hand: k of one kind among m discordant images is a coin thrown m times."""
    now, before = outcomes(1000, lost, won)
    allowed = None if max_drop is None else rate_of(max_drop, "")
    clean, found = compare(record(now), record(before), allowed)
    assert (clean.name, clean.passed, clean.got) == ("baseline:clean", True, "100.0% after 100.0%, no change")
    assert (found.name, found.passed) == ("baseline:pgd", passed)
    assert f"lost {lost} and won {won} of 1,000 images, McNemar p = {p:.2g};" in found.detail
    assert found.detail.endswith("within chance") == (lost != won and p >= 0.05)
    if lost > won:
        assert f"a drop of {(lost - won) / 1000:.2%}" in found.got
    if won > lost:
        assert f"a rise of {(won - lost) / 1000:.2%}" in found.got


def test_only_images_that_both_saw_are_compared() -> None:
    now, before = outcomes(100, 4, 0)
    shorter = compare(record(now[:50]), record(before), None)[1]
    assert "lost 4 and won 0 of 50 images" in shorter.detail
    shuffled = np.random.default_rng(0).permutation(100)
    old = record(before)
    mixed = replace(
        old,
        index=old.index[shuffled],
        image=old.image[shuffled],
        clean=old.clean[shuffled],
        answers={
            key: replace(each, robust=each.robust[shuffled])
            for key, each in old.answers.items()
            if each.robust is not None
        },
    )
    assert compare(record(now), mixed, None) == compare(record(now), old, None)
    # A row that was cut to its first 20 images says nothing about the others.
    assert "of 20 images" in compare(record(now, n=20), old, None)[1].detail

    def two(each: Recorded, asked: int) -> Recorded:
        """A second row of the same outcome."""
        (answer,) = each.answers.values()
        second = {("square", None, "linf", 0.1): replace(answer, id="square", asked=asked)}
        return replace(each, answers={**each.answers, **second})

    assert compare(two(record(now), 100), two(old, 100), None)[-1].name == "baseline:worst-case"
    assert compare(two(record(now), 20), two(old, 100), None)[-1].name == "baseline:square"
    with pytest.raises(ValueError, match="the same images"):
        compare(record(now), replace(old, image=old.image + np.uint64(1)), None)


def test_rows_without_an_answer() -> None:
    now, before = outcomes(100, 0, 0)
    gone = record(now, status="skipped", reason="no memory")
    result = compare(gone, record(before), Fraction(1))[1]
    assert (result.passed, result.got, result.detail) == (False, "no answer", "skipped: no memory")
    assert [each.name for each in compare(record(now), gone, None)] == ["baseline:clean"]
    assert uncompared(record(now), gone) == ["pgd"]
    assert uncompared(gone, record(now)) == []


def test_baseline_from_its_files(tmp_path: Path) -> None:
    """The model and its neighbour with another bias; both robust accuracies in closed form."""
    evaluation, document = run()
    write(evaluation, document, tmp_path)
    old = read(tmp_path / "results.json")
    assert read(tmp_path).dataset == ("linear", "test")
    new, changed = run(split=linear_split(N), shift=0.4)
    check_comparable(old, rows_of(new), "linear", "test", new.split)
    moved = linear(0.4)
    margins = moved.margins(IMAGES, "linf")
    right = moved(torch.from_numpy(IMAGES)).argmax(1).numpy() == linear_split(N).labels
    now, before = right & (margins > EPS), MARGINS > EPS
    found = compare(recorded(changed, samples(new)), old, Fraction(0))
    assert [each.name for each in found] == ["baseline:clean", "baseline:fgsm", "baseline:pgd", "baseline:worst-case"]
    lost, won = int((before & ~now).sum()), int((now & ~before).sum())
    assert lost + won > 3
    for result in found[1:]:
        assert f"lost {lost} and won {won} of 40" in result.detail
        assert result.passed == (lost <= won)


def test_baseline_of_something_else(tmp_path: Path) -> None:
    evaluation, document = run()
    write(evaluation, document, tmp_path)
    old, split = read(tmp_path), linear_split(N)
    pgd = plan(["pgd"], norm="linf", eps=[EPS])
    check_comparable(old, pgd, "linear", "test", split.subset(10))
    check_comparable(old, pgd, "linear", "test", replace(split, index=split.index[::-1], labels=split.labels[::-1]))
    other = replace(split, base=255 - split.base)
    stubborn = plan(["pgd"], norm="linf", eps=[EPS], settings={"pgd": {"steps": 50}})
    for rows, dataset, images, message in [
        (pgd, "digits", split, "--baseline is of linear test, this evaluation of digits test"),
        (plan(["pgd"], norm="l2", eps=[EPS]), "linear", split, "--baseline has norm linf, this evaluation l2"),
        (plan(["pgd"], norm="linf", eps=[0.5]), "linear", split, "has eps .*, this evaluation 0.5"),
        (plan(["square"], norm="linf", eps=[EPS]), "linear", split, "has attack fgsm, pgd, this evaluation square"),
        (plan(["cw2"], norm="linf", eps=[EPS]), "linear", split, "this evaluation none"),
        (stubborn, "linear", split, "--baseline ran pgd with steps 10, this evaluation with 50"),
        (pgd, "linear", other, "saw other images or labels"),
        (pgd, "linear", replace(split, labels=1 - split.labels), "saw other images or labels"),
        (
            pgd,
            "linear",
            Split(np.tile(split.base, (2, 1, 1, 1)), split.index + N, split.labels),
            "saw none of these images",
        ),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            check_comparable(old, rows, dataset, "test", images)
        assert caught.value.hint


def test_baseline_files_that_are_none(tmp_path: Path) -> None:
    evaluation, document = run()
    write(evaluation, document, tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("results.json", "samples.npz")}

    def refused(name: str, content: bytes | None, message: str) -> None:
        for each, data in whole.items():
            (tmp_path / each).write_bytes(data)
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / "results.json")
        assert caught.value.hint

    refused("results.json", None, "no such file")
    refused("samples.npz", None, "no such file")
    for content in (b"", b"\xff\xfe", b"[]", b"{}", b'{"schema": "dgad/bench/1"}', b"null"):
        refused("results.json", content, "was not written by `dgad attack`")
    refused("samples.npz", b"", "are damaged")
    refused("samples.npz", whole["samples.npz"][:-300], "are damaged")
    refused("results.json", b'{"schema": "dgad/results/1"}', "are damaged")
    edited = json.loads(whole["results.json"])
    edited["attacks"][0]["id"] = "other"
    refused("results.json", json.dumps(edited).encode(), "are damaged")
    with np.load(tmp_path / "samples.npz") as arrays:
        short = {name: values[:7] if name == "image" else values for name, values in arrays.items()}
    np.savez(tmp_path / "short.npz", **short)
    refused("samples.npz", (tmp_path / "short.npz").read_bytes(), "expected one value for each of 40 images")


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


def test_as_the_command_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags to exit code: everything is written before a gate fails."""
    evaluation, document = run()
    write(evaluation, document, tmp_path / "old")
    junit = tmp_path / "ci" / "junit.xml"

    def judged(*flags: str, max_drop: str | None = None) -> dict[str, Any]:
        demands = demands_of(flags, tmp_path / "old/results.json", max_drop, junit)
        old = check_demands(demands, rows_of(evaluation), "linear", "test", evaluation.split)
        found = document | {"gates": judge_demands(demands, old, evaluation, document)}
        print_gates([found])
        conclude(demands, [found])
        return found

    found = judged("clean=100%", "pgd=0.5", max_drop="0%")
    assert json.loads(json.dumps(found["gates"])) == found["gates"]
    assert [gate["name"] for gate in found["gates"]][:2] == ["clean", "pgd"]
    assert "gate clean passed: 100.0% (40 of 40), required is at least 100%" in capsys.readouterr().out
    junit.unlink()
    with pytest.raises(GateError, match=r"failed the gate pgd: 50.0% \(20 of 40\), required is at least 51%; so did 1"):
        judged("pgd=51%", "worst-case=51%")
    assert "gate pgd FAILED" in capsys.readouterr().out
    assert len(ElementTree.parse(junit).findall(".//failure")) == 2
    judged("pgd=50%")  # JUnit XML may be written over
    conclude(Demands({}), [document | {"gates": []}])


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
    _, document = run(("fgsm", "pgd", "cw2", "transfer:fgsm"), surrogates=(NONE,))
    document["gates"] = [
        vars(GateResult("clean", True, "at least 90%", "100%")),
        vars(GateResult("pgd", False, "at least 60%", "50%", "95 % interval 40% to 60%")),
    ]
    other = json.loads(json.dumps(document))
    other["model"]["path"] = "a<b>&\"\x00\x1b\ud800\uffff'.onnx"
    other["attacks"][0] |= {"status": "interrupted", "reason": "killed ]]> \x07"}
    other["checks"] = {"verdict": "unreliable", "items": [{"name": "logits", "verdict": "warn", "detail": "<odd>"}]}
    path = tmp_path / "junit.xml"
    write_junit([document, other], path)

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
    assert first.attrib["timestamp"] == document["created"].removesuffix("+00:00")
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
