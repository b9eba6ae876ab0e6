"""`dgad attack` as a user meets it: files from elsewhere, budgets, gates, matrices, what is refused before any work."""

import csv
import json
import re
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import Run, Victim, artifact, refused

from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.common import sha256_file
from evaluators.target import precision


def _write_foreign(path: Path, *, mean: float = 0.0, std: float = 1.0) -> None:
    """A network trained for a moment on digits, as others export it: one image (1, 8, 8, 1) at a time, a Softmax at the
    end; and what it was trained with is left to whoever calls it."""

    import torch
    from torch import nn

    from dgad_tk.data import load_dataset

    digits = load_dataset("digits").train
    pixels = torch.from_numpy(digits.take(slice(0, 512)) / np.float32(255))
    x, y = (pixels.permute(0, 2, 3, 1) - mean) / std, torch.from_numpy(digits.labels[:512])

    class ChannelsFirst(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 3, 1, 2)

    net = nn.Sequential(ChannelsFirst(), nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nn.Sequential(net, nn.Softmax(1)).eval()
        torch.onnx.export(whole, (x[:1],), str(path), dynamo=False, opset_version=13, output_names=["probabilities"])


def test_an_onnx_file_as_others_write_it(dgad: Run, tmp_path: Path) -> None:
    """Fixed batch, channels last, a Softmax, normalisation outside: attacked by flags, and the results say how."""
    command = ["attack", "--model", "theirs.onnx", "--dataset", "digits", "--limit", "60"]
    _write_foreign(Path("theirs.onnx"), mean=0.5, std=0.1)
    code, _, err = dgad(*command)
    assert code == 0, err
    assert "note: theirs.onnx: the file takes images (N, H, W, C)" in err
    assert "note: theirs.onnx: ONNX Runtime is given 1 image at a time" in err
    assert "note: theirs.onnx: gradients come from the logits before the final Softmax" in err
    assert "pixels are" not in err
    (folder,) = tmp_path.glob("attacks/theirs-*")
    without = json.loads((folder / "results.json").read_text())
    code, _, err = dgad(*command, "--mean", "0.5", "--std", "0.1")
    assert code == 0, err
    assert "note: theirs.onnx: for the file, pixels are less 0.5, over 0.1" in err
    found = json.loads((folder / "results.json").read_text())
    assert found["clean"]["accuracy"] > 0.9
    assert found["clean"]["accuracy"] > without["clean"]["accuracy"]
    assert found["model"]["preprocessing"] == {
        "layout": "nhwc",
        "channel_order": "rgb",
        "mean": [0.5],
        "std": [0.1],
        "input_range": [0.0, 1.0],
        "logits_output": "probabilities",
    }
    assert any("final Softmax" in note for note in found["model"]["notes"])
    robust = {row["id"]: row["robust"] for row in found["attacks"]}
    assert robust["pgd"] <= robust["fgsm"] < found["clean"]["correct"]
    # (x - 0.5) / 0.1 again, said in another way: the same numbers, but kept under another question.
    before = len(list((folder / "units").iterdir()))
    code, out, err = dgad(*command, "--input-range", "0-10", "--mean", "5", "--json")
    assert code == 0, err
    assert {row["id"]: row["robust"] for row in json.loads(out)["attacks"]} == robust
    assert len(list((folder / "units").iterdir())) == before + 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mean", "a,b"], "--mean must be numbers with commas"),
        (["--std", ""], "--std must be numbers with commas"),
        (["--std", "0"], "--std must be above 0"),
        (["--mean", "127.5"], "--mean must lie in the range of the input, 0 to 1"),
        (["--mean", "0.1,0.2,0.3"], "--mean gives 3 values, the images have 1 channels"),
        (["--input-range", "255"], "--input-range must be two numbers such as 0-255"),
        (["--input-range", "1-0"], "--input-range must rise"),
        (["--layout", "nchv"], "unknown layout 'nchv'"),
        (["--logits-output", "logits"], "has no output 'logits' of logits"),
        (["--model", "ours.safetensors", "--mean", "0.5"], "'ours.safetensors' carries a dgad record"),
    ],
)
def test_bad_interfaces(dgad: Run, weights: Path, flags: list[str], message: str) -> None:
    if "--model" in flags:
        shutil.copy(weights, "ours.safetensors")
    else:
        _write_foreign(Path("theirs.onnx"))
        flags = ["--model", "theirs.onnx", *flags]
    refused(dgad("attack", "--dataset", "digits", "--limit", "10", *flags), message)


@pytest.mark.parametrize(
    ("text", "expected"), [("0-255", (0, 255)), ("-1-1", (-1, 1)), ("-1,1", (-1, 1)), ("-.5--.25", (-0.5, -0.25))]
)
def test_ranges(text: str, expected: tuple[float, float]) -> None:
    from cli.flags.preprocessing import interface_of

    assert interface_of(None, None, text, None, None).input_range == expected


def _write_linear(path: Path, *, images: slice = slice(0, 500), twin: bool = True) -> None:
    """A linear classifier of digits; without `twin` it has an operator that the twin has not, which adds nothing."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from dgad_tk.data import load_dataset

    digits = load_dataset("digits").train
    x, y = digits.take(images).reshape(-1, 64) / 255, np.eye(10)[digits.labels[images]]
    weight = np.linalg.solve(x.T @ x + np.eye(64), x.T @ y).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Identity" if twin else "Unique", ["x"], ["unique"]),
        helper.make_node("ReduceMin", ["unique"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["y"]),
    ]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1, 8, 8]), ("y", ["n", 10]))
    )
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(0).reshape(()), "zero")]
    graph = helper.make_graph(nodes, "digits", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_a_file_without_a_twin_is_attacked_without_gradients(dgad: Run) -> None:
    _write_linear(Path("odd.onnx"), twin=False)
    command = ["attack", "--model", "odd.onnx", "--dataset", "digits", "--limit", "20"]
    refused(dgad(*command), "'odd.onnx': the twin has no operator 'Unique'")
    assert "--suite blackbox" in dgad(*command)[2]
    refused(dgad("bench", "odd.onnx", "--robust"), "the twin has no operator 'Unique'")
    few = ["--attack", "square", "--set", "square.queries=50"]
    own = dgad(*command, *few, "--attack", "transfer:fgsm", "--surrogate", "odd.onnx")
    refused(own, "'odd.onnx': the twin has no operator 'Unique'")
    code, out, err = dgad(*command, *few, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert any(note.startswith("there are no gradients: ") for note in document["model"]["notes"])
    assert document["checks"]["verdict"] == "warn"
    (square,) = document["attacks"]
    assert square["robust"] < document["clean"]["correct"]
    code, out, err = dgad(*command, *few, "--dry-run")
    assert code == 0, err
    assert "20 images in under 1 s, extrapolated from 20: shares to" in out


def test_gates_and_a_baseline(dgad: Run, weights: Path) -> None:
    """What the baseline cannot answer is said; exit code 1 with everything written."""
    command = ["attack", "--model", weights, "--limit", "20", "--quiet", "--eps", "0.1"]
    assert dgad(*command, "--attack", "fgsm", "--output", "old")[0] == 0
    code, out, err = dgad(*command, "--attack", "fgsm", "--attack", "pgd", "--output", "new", "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads(Path("new/results.json").read_text())
    gate = ["gate", "new", "--baseline", "old/results.json", "--junit", "ci/junit.xml"]
    code, out, err = dgad(*gate, "--max-drop", "0%", "--min", "worst-case=0%")
    assert code == 0, err
    assert "gate baseline:fgsm passed: " in out
    assert "not compared, since the baseline has no answer: pgd" in out
    code, out, err = dgad(*gate, "--min", "pgd=100%", "--json")
    assert (code, err.count("\n")) == (1, 1)
    assert "failed the gate pgd: " in err
    document = json.loads(out)
    assert document["uncompared"] == ["pgd"]
    assert [each["passed"] for each in document["gates"] if each["name"] == "pgd"] == [False]
    assert '<failure message="pgd: ' in Path("ci/junit.xml").read_text()


@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_of_a_search(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: fast)
    command = ["attack", "--model", weights, "--limit", "20", "--eps", "0.1", "--search-precision", "bf16", "--json"]
    more = ["--attack", "pgd", "--attack", "square", "--set", "square.queries=5", "--output", "out"]
    code, out, err = dgad(*command, *more)
    assert code == 0, err
    assert ("no units for bfloat16" in err) != fast
    asked = {row["id"]: row["params"].get("search_precision") for row in json.loads(out)["attacks"]}
    assert asked == {"pgd": "bf16", "square": None}
    code, out, err = dgad(*command, "--attack", "cw2", "--set", "cw2.max_iter=2", "--output", "other")
    assert code == 0, err
    assert "none of these attacks searches in bf16" in err


@pytest.fixture
def trained(victim: Victim, tmp_path: Path) -> Path:
    path = tmp_path / "victim.safetensors"
    save_weights(path, victim[0], artifact())
    return path


def test_a_curve_from_one_run(dgad: Run, trained: Path, short_square: None) -> None:
    """In the table, the results, a CSV of its own and the page; points of AutoAttack lie on or below it."""
    command = ["attack", "--model", trained, "--limit", "10", "--quiet", "--output", "c"]
    autoattack = ["--attack", "apgd-ce", "--attack", "autoattack", "--eps", "0.02,0.05"]
    code, out, err = dgad(*command, *autoattack, "--curve", "--set", "fmn.steps=20")
    assert code == 0, err
    assert "robust accuracy against eps, an upper bound from one search on 10 images:" in out
    assert re.search(r"Linf eps +at most, by fmn +AutoAttack +95 % interval +by\n0 ", out)
    assert re.search(r"\n0\.05 .*autoattack@0\.05\n", out)
    assert re.search(r"\n95 % intervals of these shares: ±\d+\.\d points or less\n", out)
    assert re.search(r"\nfmn: the median distance is 0\.\d+ in Linf\n", out)
    document = json.loads(Path("c/results.json").read_text())
    (curve,) = document["curves"]
    assert (curve["row"], curve["norm"], curve["n"], curve["bound"]) == ("fmn", "linf", 10, "upper")
    assert curve["steps"][-1]["robust"] == 0
    assert curve["steps"][0] == {"eps": 0, "robust": document["clean"]["correct"]}
    with np.load("c/samples.npz") as samples:
        distance = samples["distance/fmn"][~samples["robust/fmn"] & (samples["clean_pred"] == samples["label"])]
    assert [each["eps"] for each in curve["steps"][1:]] == np.unique(distance).tolist()
    assert [each["row"] for each in curve["exact"]] == ["autoattack@0.02", "autoattack@0.05"]
    for point in curve["exact"]:
        bound = [each["robust"] for each in curve["steps"] if each["eps"] <= point["eps"]][-1]
        assert point["robust"] <= bound
    with Path("c/curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["bound"] for row in rows] == ["upper"] * len(curve["steps"]) + ["exact"] * 2
    assert [float(row["eps"]) for row in rows[:-2]] == [each["eps"] for each in curve["steps"]]
    assert "An upper bound at every eps" in Path("c/report.html").read_text()
    Path("c/report.html").unlink()
    assert dgad("report", "c")[0] == 0
    assert "An upper bound at every eps" in Path("c/report.html").read_text()

    code, out, err = dgad(*command, *autoattack[:2], "--eps", "0.05")
    assert code == 0, err
    assert not Path("c/curve.csv").exists()  # of the evaluation before
    assert "upper bound" not in out + Path("c/report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        (["--curve"], ["fmn"]),
        (["--curve", "--norm", "l0"], ["fmn"]),
        (["--curve", "--norm", "l2", "--attack", "ddn"], ["ddn"]),
        (["--curve", "--attack", "ddn"], ["ddn", "fmn"]),  # whose norm is another
    ],
)
def test_who_draws_the_curve(dgad: Run, trained: Path, flags: list[str], rows: list[str]) -> None:
    code, out, err = dgad("attack", "--model", trained, "--limit", "10", "--quiet", "--json", *flags)
    assert code == 0, err
    document = json.loads(out)
    assert [row["id"] for row in document["attacks"]] == rows
    assert [curve["row"] for curve in document["curves"]] == rows


def test_in_l0_few_values_change(dgad: Run, trained: Path) -> None:
    """All channels count; no radius is needed, and what has no L0 says so."""
    attacks = ["--attack", "fmn", "--attack", "sigma-zero", "--attack", "jsma", "--set", "sigma-zero.steps=50"]
    command = ["attack", "--model", trained, "--limit", "20", "--quiet", "--norm", "l0"]
    code, out, err = dgad(*command, *attacks, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["threat"] == {"norm": "l0", "eps": []}
    for row in document["attacks"]:
        assert row["norm"] == "l0"
        assert row["median_distance"] is None or row["median_distance"] == int(row["median_distance"]) <= 64
    assert [row["success"] for row in document["attacks"][:2]] == [1, 1]
    refused(dgad(*command, "--attack", "autoattack"), "attack 'autoattack' has no norm 'l0'")
    refused(dgad("train", "--set", "threat.norm=l0"), "threat.norm: nothing is trained in l0: expected linf, l2 or l1")


@pytest.mark.parametrize("when", ["--dry-run", "--budget=1m", "--quiet"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--norm", "l1"], "no l1 radius is usual for digits"),
        (["--norm", "l1", "--eps", "2"], "attack 'fgsm' has no norm 'l1'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch, when: str, flags: list[str], message: str
) -> None:
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("evaluators.engine.pilot.pilot", never)
    monkeypatch.setattr("evaluators.engine.evaluate", never)
    refused(dgad("attack", "--model", weights, "--limit", "10", when, *flags), message)
    assert not list(Path().rglob("units"))


def test_a_matrix_of_models_and_surrogates(dgad: Run) -> None:
    """What a model's examples do to the model itself is what the white-box attack does, and is marked."""
    _write_linear(Path("a.onnx"))
    _write_linear(Path("b.onnx"), images=slice(500, 1000))
    models = ["--model", "a.onnx", "--model", "b.onnx", "--surrogate", "a.onnx", "--surrogate", "b.onnx"]
    options = ["--dataset", "digits", "--limit", "40", "--eps", "0.05", "--output", "m", "--quiet"]
    attacks = ["--attack", "pgd", "--attack", "transfer:pgd", "--attack", "transfer:jsma"]
    code, out, err = dgad("attack", *models, *attacks, *options)
    assert code == 0, err
    pgd, jsma = json.loads(Path("m/matrix.json").read_text())["tables"]
    results = {path.parent.name[0]: json.loads(path.read_text()) for path in Path("m").glob("*/results.json")}
    own = [results[name]["attacks"][0]["robust_accuracy"] for name in "ab"]
    shares = pgd["robust_accuracy"]
    assert [shares[at][at] for at in range(2)] == own
    assert shares[0][1] > own[1]
    rows = [line.split() for line in out.splitlines() if line.startswith(("a ", "b "))]
    assert rows[0] == ["a", "pgd", "0.05", "robust", f"*{own[0]:.1%}", f"{shares[0][1]:.1%}"]
    success = jsma["success"][1]
    assert rows[3] == ["b", "jsma", "unbounded", "success", f"{success[0]:.1%}", f"*{success[1]:.1%}"]
    assert "* made on this very file" in out
    assert not Path("m/examples").exists()


def test_what_has_no_column_is_told_below_the_table(dgad: Run) -> None:
    _write_linear(Path("a.onnx"))
    options = ["--attack", "autoattack", "--attack", "cw2-paper", "--set", "cw2-paper.max_iter=5"]
    options += ["--attack", "art:hopskipjump", "--set", "art:hopskipjump.samples=2", "--dataset", "digits"]
    code, out, err = dgad("attack", "--model", "a.onnx", *options, "--limit", "10", "--eps", "0.3", "--output", "o")
    assert code == 0, err
    entries = {entry["name"]: entry for entry in json.loads(Path("o/results.json").read_text())["attacks"]}
    stages = entries["autoattack"]["stages"]
    assert "autoattack broke by stage: " + ", ".join(f"{each['name']} {each['broken']}" for each in stages) in out
    assert sum(each["broken"] for each in stages) > 0
    assert f"cw2-paper left {entries['cw2-paper']['accuracy']:.1%} right" in out
    assert "\nart:hopskipjump (first 2)  unbounded" in out
    assert "1/3 art:hopskipjump 100%" not in err
    assert "1/3 " in err
    with Path("o/results.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert float(rows["autoattack"]["ci95_low"]) <= float(rows["autoattack"]["robust_accuracy"])
    assert rows["cw2-paper"]["ci95_high"] == ""


def test_a_budget_is_for_certain_surrogates(dgad: Run, weights: Path) -> None:
    """What a surrogate costs is in the choice, so another one under the same name asks anew."""
    shutil.copy(weights, "s.safetensors")
    command = ["attack", "--model", weights, "--attack", "transfer:fgsm", "--surrogate", "s.safetensors"]
    command += ["--limit", "20", "--budget", "1m", "--output", "o", "--quiet"]
    assert dgad(*command)[0] == 0
    before = json.loads(Path("o/budget.json").read_text())
    assert before["question"]["surrogates"] == {"s": sha256_file(weights)}
    model, record = load_model(weights)
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    save_weights(Path("s.safetensors"), model, record)
    assert dgad(*command)[0] == 0
    after = json.loads(Path("o/budget.json").read_text())
    assert after["question"]["surrogates"] == {"s": sha256_file(Path("s.safetensors"))}
    assert before["question"]["surrogates"] != after["question"]["surrogates"]


def test_the_same_attack_goes_on_after_ctrl_c(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.printing.progress import AttackProgress

    def interrupting(self: AttackProgress, state: Any) -> None:
        if state.number == 2:
            signal.raise_signal(signal.SIGINT)

    command = ["attack", "--model", weights, "--suite", "fast", "--limit", "20", "--output", "o"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(AttackProgress, "__call__", interrupting)
            code, out, err = dgad(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert "hint: the same command goes on where it stopped" in err
    (unit,) = Path("o/units").iterdir()
    kept = unit.stat().st_mtime_ns
    code, out, err = dgad(*command)
    assert code == 0, err
    assert unit.stat().st_mtime_ns == kept
    assert len(list(Path("o/units").iterdir())) == 2


def test_list_attacks_names_what_can_be_set(dgad: Run) -> None:
    out = dgad("list", "attacks")[1]
    assert "steps=10 relative_step=0.25 restarts=1 loss=ce" in out
