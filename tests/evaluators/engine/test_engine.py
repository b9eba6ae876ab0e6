"""The engine at scale: radii that build on each other, several targets, processes that are killed, memory."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import NEEDS_ACCOUNT, WATCH
from processes import Child, together
from shared import Run, Victim, artifact, runner
from victims import TwoClassLinear, as_torch, linear_split

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.artifacts.weights import save_weights
from dgad_tk.data import load_dataset
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack.square.square import Square
from evaluators.engine import work
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.reordered import Reordered
from evaluators.plan.rows import Surrogate, plan
from evaluators.report.files import results, samples
from evaluators.report.matrix import matrix
from evaluators.target.precision import PRECISIONS

engine: Any = importlib.import_module("evaluators.engine.evaluate")


@pytest.fixture
def predictor(victim: Victim) -> Predictor:
    return as_torch(victim[0], (1, 8, 8))


@pytest.fixture
def dgad(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def trained(victim: Victim, tmp_path: Path) -> Path:
    path = tmp_path / "victim.safetensors"
    save_weights(path, victim[0], artifact())
    return path


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images each row has searched on."""
    found: Counter[str] = Counter()
    original = work.search

    def counted(source: Any, row: Any, chunk: Any, **options: Any) -> Any:
        found[row.id] += len(chunk.labels)
        return original(source, row, chunk, **options)

    monkeypatch.setattr(work, "search", counted)
    return found


def broken(evaluation: Evaluation) -> dict[str, np.ndarray]:
    found = {outcome.row.id: outcome.unit.broken for outcome in evaluation.outcomes if outcome.unit is not None}
    assert len(found) == len(evaluation.outcomes)
    return found


def assert_same_record(first: Evaluation, second: Evaluation) -> None:
    ours, theirs = samples(first), samples(second)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert np.array_equal(values, theirs[name], equal_nan=values.dtype.kind == "f"), name
    documents = [results(each, command="", dataset="digits", split="test").to_dict() for each in (first, second)]
    assert timeless(documents[0]) == timeless(documents[1])


def timeless(document: Any) -> Any:
    """A document of JSON without what a clock says."""
    if isinstance(document, dict):
        return {key: timeless(value) for key, value in document.items() if key not in ("seconds", "created", "command")}
    return [timeless(each) for each in document] if isinstance(document, list) else document


def test_what_breaks_at_a_small_radius_is_not_attacked_at_a_larger_one(
    predictor: Predictor, searched: Counter[str]
) -> None:
    split, radii = load_dataset("digits").test.subset(48), [0.2, 0.05, 0.1]
    evaluation = evaluate(predictor, split, plan(["pgd", "fgsm"], norm="linf", eps=radii))
    found, right = broken(evaluation), int(evaluation.clean_right.sum())
    assert (found["pgd@0.05"] <= found["pgd@0.1"]).all()
    assert (found["pgd@0.1"] <= found["pgd@0.2"]).all()
    assert 0 < found["pgd@0.05"].sum() < found["pgd@0.1"].sum() < found["pgd@0.2"].sum()
    assert searched["pgd@0.05"] == right
    assert searched["pgd@0.1"] == right - found["pgd@0.05"].sum()
    assert searched["pgd@0.2"] == right - found["pgd@0.1"].sum()
    # One step of full size is what FGSM is at each radius, whatever a shorter one did.
    assert searched["fgsm@0.1"] == right
    rows = {each.id: each for each in results(evaluation, command="", dataset="", split="").attacks}
    assert rows["pgd@0.2"].reused == found["pgd@0.1"].sum()
    assert rows["fgsm@0.2"].reused == 0
    for eps in radii:
        expected = evaluation.clean_right.copy()
        for other in (each for each in radii if each <= eps):
            expected &= ~found[f"pgd@{other:g}"] & ~found[f"fgsm@{other:g}"]
        assert np.array_equal(evaluation.held(eps), expected)


def test_a_row_of_few_images_says_nothing_of_the_others(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(ATTACKS["pgd"], samples=20)
    monkeypatch.setitem(ATTACKS, "few", few)
    monkeypatch.setattr(engine, "CHUNK", 16)
    split = load_dataset("digits").test.subset(48)
    evaluation = evaluate(predictor, split, plan(["fgsm", "few"], norm="linf", eps=[0.1]))
    unit = evaluation.outcomes[1].unit
    assert unit is not None
    assert len(unit.broken) == 20
    document = results(evaluation, command="", dataset="digits", split="test")
    assert [each.n for each in document.attacks] == [48, 20]
    fgsm = evaluation.outcomes[0].unit
    assert fgsm is not None
    assert document.worst_case[0].robust == (evaluation.clean_right & ~fgsm.broken).sum()


def test_examples_are_made_once_for_all_targets(
    predictor: Predictor, victim: Victim, searched: Counter[str], tmp_path: Path
) -> None:
    other = as_torch(torch.nn.Sequential(victim[0], torch.nn.Linear(10, 10)), (1, 8, 8))
    other = replace(other, sha256="1" * 64)
    split = load_dataset("digits").test.subset(48)
    surrogates = [Surrogate("first", predictor), Surrogate("weak", other)]
    rows = plan(["transfer:pgd", "transfer:fgsm"], norm="linf", eps=[0.1], surrogates=surrogates)
    whole = {"examples": tmp_path / "examples"}
    evaluations = [evaluate(target, split, rows, **whole) for target in (predictor, replace(predictor, sha256="2"))]
    # Every image once, whatever the targets get right; the useless surrogate not at all.
    assert searched == {"transfer:first:pgd": 48, "transfer:first:fgsm": 48}
    alone = evaluate(predictor, split, rows)
    assert_same_record(evaluations[0], alone)
    documents = [results(each, command="", dataset="digits", split="test") for each in evaluations]
    table = matrix(documents, {"first": "0", "weak": "1"})
    by_attack = {each.attack: each for each in table.tables}
    assert by_attack["pgd"].robust_accuracy[1] == [None, None]
    expected = documents[0].attacks[0].robust_accuracy
    assert by_attack["pgd"].robust_accuracy[0] == [expected, expected]
    json.dumps(asdict(table), allow_nan=False)


class Killed(Exception):
    pass


def test_an_ensemble_goes_on_between_its_stages(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_square: None
) -> None:
    """Killed in the last stage, it does that stage alone, and its passes are those of an undisturbed run."""
    split = load_dataset("digits").test.subset(40)
    rows = plan(["autoattack"], norm="linf", eps=[0.03])
    whole = evaluate(predictor, split, rows)

    def killed(self: Any, *arguments: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Square, "search", killed)
        with pytest.raises(Killed):
            evaluate(predictor, split, rows, store=tmp_path)
    assert [path.name.endswith(".part.npz") for path in tmp_path.iterdir()] == [True]
    with monkeypatch.context() as patch:
        for stage in ("apgd.apgd.APGD", "fab.fab.FAB"):
            patch.setattr(f"evaluators.attacks.autoattack.{stage}.search", killed)
        resumed = evaluate(predictor, split, rows, store=tmp_path)
    assert_same_record(resumed, whole)
    assert [path.name.endswith(".part.npz") for path in tmp_path.iterdir()] == [False]


def command(model: Path, out: Path, *more: str) -> list[str]:
    flags = ["--attack", "pgd", "--attack", "apgd-ce", "--attack", "square", "--set", "square.queries=60"]
    flags += ["--curve", "--attack", "ddn", "--attack", "sigma-zero", "--set", "sigma-zero.steps=20"]
    return ["attack", "--model", str(model), "--output", str(out), "--eps", "0.02,0.05", "--quiet", *flags, *more]


def _attack(arguments: list[str], chunk: int) -> int:
    from cli import app

    engine.CHUNK = chunk
    torch.set_num_threads(1)
    return app.run(arguments)


def _record(folder: Path) -> tuple[dict[str, np.ndarray], Any]:
    with np.load(folder / "samples.npz") as arrays:
        found = dict(arrays)
    return found, timeless(json.loads((folder / "results.json").read_text()))


def assert_same_folder(first: Path, second: Path) -> None:
    ours, theirs = _record(first), _record(second)
    assert ours[0].keys() == theirs[0].keys()
    for name, values in ours[0].items():
        assert np.array_equal(values, theirs[0][name], equal_nan=values.dtype.kind == "f"), name
    assert ours[1] == theirs[1]
    assert (first / "curve.csv").read_text().replace(str(first), "") == (second / "curve.csv").read_text()
    assert [each["row"] for each in ours[1]["curves"]] == ["ddn", "sigma-zero", "fmn"]


UNIT = 20
LIMITS = {"fp32": "50", "bf16": "30"}
"""Images, in units of UNIT. Processors without bfloat16 take several times as long in it."""
Undisturbed = tuple[Path, tuple[str, ...], Path, float]
"""The model, flags, the folder of an attack to which nothing happened, and its seconds."""


@pytest.fixture(scope="module", params=PRECISIONS)
def undisturbed(
    request: pytest.FixtureRequest, victim: Victim, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    folder = tmp_path_factory.mktemp(request.param)
    model, whole = folder / "victim.safetensors", folder / "whole"
    save_weights(model, victim[0], artifact())
    more = "--limit", LIMITS[request.param], "--search-precision", request.param
    begun = time.perf_counter()
    assert Child(_attack, command(model, whole, *more), UNIT).result() == 0
    return model, more, whole, time.perf_counter() - begun


def test_killed_at_any_moment_it_ends_with_the_same_record(undisturbed: Undisturbed, tmp_path: Path) -> None:
    model, more, whole, seconds = undisturbed
    cut, kills = tmp_path / "cut", 0
    for share in (0.1, 0.25, 0.4, 0.5, 0.5):  # each goes on where the one before was killed
        child = Child(_attack, command(model, cut, *more), UNIT)
        if child.ends_within(share * seconds):
            break
        child.kill()
        kills += child.outcome()[0] == "killed"
    assert kills > 0
    assert Child(_attack, command(model, cut, *more), UNIT).result() == 0
    assert_same_folder(whole, cut)


def test_two_processes_write_the_record_of_one(undisturbed: Undisturbed, tmp_path: Path) -> None:
    model, more, one, _ = undisturbed
    two = tmp_path / "two"
    assert [child.result() for child in together(2, _attack, command(model, two, *more), UNIT)] == [0, 0]
    assert_same_folder(one, two)


def test_torchrun_starts_the_attack(trained: Path, tmp_path: Path) -> None:
    """As a user types it: one table, one folder, and one number of images that a budget is enough for."""
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli"]
    arguments = ["attack", "--model", str(trained), "--output", str(out), "--limit", "60", "--json", "--quiet"]
    arguments += ["--budget", "1h"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert [each["id"] for each in json.loads(done.stdout)["attacks"]] == ["fgsm", "pgd"]
    assert json.loads((out / "budget.json").read_text())["n"] == 60


def test_a_second_run_does_only_what_is_new(
    trained: Path, tmp_path: Path, dgad: Run, searched: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNK", 20)
    arguments = ["attack", "--model", trained, "--output", tmp_path / "out", "--quiet"]
    assert dgad(*arguments, "--limit", 40)[0] == 0
    assert set(searched) == {"fgsm", "pgd"}
    searched.clear()
    assert dgad(*arguments, "--suite", "fast", "--attack", "mim", "--limit", 40)[0] == 0
    assert set(searched) == {"mim"}
    searched.clear()
    assert dgad(*arguments, "--limit", 60)[0] == 0
    assert 0 < searched["fgsm"] <= 20


MEMORY = (
    WATCH
    + """
import torch

from dgad_tk.artifacts.predictor import predictor_of_module
from dgad_tk.data import Split
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.report.files import results, write

torch.set_num_threads(1)
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
predictor = predictor_of_module(module, (3, 32, 32), format="torchscript", path=Path("m.pt"), sha256="0")
images = np.load(sys.argv[1], mmap_mode="r")


def run(n):
    part = images[:n]
    labels = predictor.predict(part[:] / np.float32(255)).argmax(1) if n <= 500 else np.concatenate(
        [predictor.predict(part[k : k + 500] / np.float32(255)).argmax(1) for k in range(0, n, 500)]
    )
    split = Split(part, np.arange(n), labels)
    rows, folder = plan(["fgsm", "pgd"], norm="linf", eps=[0.001, 0.01]), Path(sys.argv[2])
    evaluation = evaluate(predictor, split, rows, store=folder)
    write(evaluation, results(evaluation, command="", dataset="", split=""), folder)


run(1000)
begin = anonymous()
threading.Thread(target=watch, daemon=True).start()
growth = {}
for n in (1000, 6000):
    seen[:] = [anonymous()]
    run(n)
    growth[n] = max(seen) - begin
print(json.dumps(growth))
"""
)


@NEEDS_ACCOUNT
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "images.npy"), str(tmp_path / "units")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)
    # 5,000 images more have 61 MB as float32, held once. What the allocator keeps of batches differs by up to 31 MB.
    assert growth["6000"] - growth["1000"] < 50, growth


def test_a_unit_is_kept_under_all_that_its_siblings_depend_on(tmp_path: Path) -> None:
    """The same file read otherwise, or with its classes in another order, is another sibling."""
    target, other = (replace(as_torch(TwoClassLinear()), sha256=each * 64) for each in "12")
    assert other.module is not None
    siblings = [
        other,
        replace(other, sha256="3" * 64),
        replace(other, interface=Interface(mean=(0.5,), std=(0.5,))),
        replace(other, module=Reordered(other.module, [1, 0])),
    ]
    rows = plan(
        ["autoattack-max"],
        norm="linf",
        eps=[0.001],
        settings={"autoattack-max": {"steps": 1, "restarts": 1, "queries": 1}},
    )
    for number, sibling in enumerate([*siblings, other], start=1):
        evaluate(replace(target, siblings={"it": sibling}), linear_split(2), rows, store=tmp_path)
        assert len(list(tmp_path.iterdir())) == min(number, len(siblings))
    with pytest.raises(ValueError, match="expected a predictor with a sha256"):
        evaluate(replace(target, siblings={"it": replace(other, sha256="")}), linear_split(2), rows, store=tmp_path)
