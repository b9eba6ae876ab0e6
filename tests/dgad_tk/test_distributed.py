"""Several Gloo processes against one: the same weights, the same figures, one writer.

The networks compute in float64, so that a difference in the order of summing flips no sign inside an attack.
"""

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Child, met, together, writes_below
from runs import assert_same_run, untimed
from safetensors.torch import load_file
from torch import Tensor, nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state, read_weights
from dgad_tk.config.threat import ThreatModel
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.distributed import world
from dgad_tk.draws import Draws
from dgad_tk.models import MODELS, build_model
from dgad_tk.models.trained import average_statistics
from dgad_tk.training import fit as fitting
from dgad_tk.training.job import Start
from dgad_tk.training.selection import accuracies
from dgad_tk.training.train import train
from exporters.onnx_student.start import start_from_graph

WIDTH = 8
FIRST = "net.layers.0.weight"


class Wide(nn.Module):
    """Two convolutions and a linear layer in float64, behind float32 images."""

    def __init__(self, in_channels: int, classes: int, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, WIDTH):
            layers += [nn.Conv2d(channels, WIDTH, 3, padding=1)]
            layers += [nn.BatchNorm2d(WIDTH)] if norm else []
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * WIDTH, classes)).double()
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(2 if weight.ndim > 1 else 1)  # else these few steps would hardly move them

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.double())


ROWS = {
    "plain-wide": lambda in_channels, classes: Wide(in_channels, classes, norm=False),
    "norm-wide": lambda in_channels, classes: Wide(in_channels, classes, norm=True),
}
QUICK: dict[str, Any] = {
    "epochs": 3,
    "limit_train": 75,  # batches of 32, 32 and 11, which two processes share as 16 + 16 and 6 + 5
    "batch_size": 32,
    "lr": 0.1,
    "threat": {"eps": 0.15, "step_size": 0.05, "steps": 2},
}
PLAIN = {"student": "plain-wide"}
EQUAL: dict[str, dict[str, Any]] = {
    "dgad": PLAIN | {"method": "dgad", "clip_grad": 0.5},
    "dgad by bs": PLAIN | {"method": "dgad", "method_options": {"divisor": "bs", "kl_reduction": "elementmean"}},
    "dgad equal": PLAIN | {"method": "dgad", "method_options": {"subset_weights": "equal", "pcr": "l2norm"}},
    "dgad released": PLAIN | {"method": "dgad", "method_options": {"mobilenet_loss": "released"}},
    "dgad used": PLAIN | {"method": "dgad", "method_options": {"attack_subset": "used", "pcr_weight": 0.0}},
    "dgad linear": PLAIN | {"method": "dgad", "method_options": {"teacher_in_attack": "linear"}},
    "dgad used, linear": PLAIN
    | {
        "method": "dgad",
        "method_options": {"attack_subset": "used", "pcr_weight": 0.0, "teacher_in_attack": "linear"},
    },
    "adaad none": PLAIN | {"method": "adaad", "method_options": {"alpha": 0.5, "teacher_in_attack": "none"}},
    "trades": PLAIN | {"method": "trades"},
    "score": PLAIN | {"method": "score"},
    "adaiad+igdm": PLAIN | {"method": "adaiad+igdm", "method_options": {"alpha": 0.5, "temperature": 2.0}},
    "dgad+saad": PLAIN | {"method": "dgad+saad", "method_options": {"saad.beta": 0.3}},
    "adaad+saad+igdm+classwise": PLAIN | {"method": "adaad+saad+igdm+classwise", "awp_gamma": 0.01},
    "rslad+classwise": PLAIN | {"method": "rslad+classwise", "method_options": {"classwise.rate": 1.0}},
    "awp and ema": PLAIN | {"method": "pgd-at", "awp_gamma": 0.01, "averaging": "ema", "ema_decay": 0.9},
    "ard": PLAIN | {"method": "ard"},
    "parts": PLAIN
    | {
        "method": "dgad",
        "accumulate": 3,
        "optimizer": "adamw",
        "lr": 0.01,
        "decay_weights_only": True,
        "augment": ["crop", "flip", "random-resized-crop:0.5", "colour-jitter"],
    },
    "frozen": {"student": "norm-wide", "method": "trades", "accumulate": 2, "freeze_bn": True},
    "mart and swa": PLAIN | {"method": "mart", "averaging": "swa", "swa_start": 1, "normalize": "dataset"},
}
"""Runs that do not depend on how many processes share them."""
STARTED: dict[str, dict[str, Any]] = {
    "own network, from weights": {
        **{"student": "ROOT/nets.py:build", "init": "ROOT/first.pt", "init_mean": [0.3], "init_std": [0.4]},
        **{"method": "dgad+igdm+saad", "averaging": "swa", "swa_start": 1, "accumulate": 2},
        "method_options": {"teacher_in_attack": "none", "saad.beta": 0.2},
    },
    "a graph": {
        **{"init": "ROOT/first.onnx", "method": "adaad+classwise+saad", "awp_gamma": 0.01, "averaging": "ema"},
        "method_options": {"teacher_in_attack": "linear", "classwise.rate": 0.5},
    },
}
"""Likewise, from files that `first_weights` makes."""
OWN: dict[str, dict[str, Any]] = {
    "own statistics": {"student": "norm-wide", "method": "dgad", "limit_train": 96},
    "own and ema": {"student": "norm-wide", "method": "trades", "averaging": "ema", "ema_decay": 0.9},
    "own and swa": {"student": "norm-wide", "method": "trades", "averaging": "swa", "swa_start": 1},
}
"""Runs that depend on it, in BatchNorm's batches."""


def run(values: dict[str, Any], teacher: Path, out: Path, resume: bool = False) -> RunFolder:
    MODELS.update(ROWS)
    here = {key: value.replace("ROOT", str(teacher.parent)) for key, value in values.items() if type(value) is str}
    config = TrainConfig.model_validate(QUICK | {"teacher": str(teacher)} | values | here)
    graph = config.init is not None and config.init.suffix == ".onnx"
    return train(config, out=out, resume=resume, start=partial(in_double, config.init) if graph else None)


SOURCE = """from torch import nn

class Own(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(in_channels, 8, 3), nn.Linear(8 * 36, classes)
        self.double()

    def forward(self, x):
        return self.linear(self.conv(x.double()).sigmoid().flatten(1))

def build(in_channels, classes):
    return Own(in_channels, classes)
"""


def first_weights(root: Path) -> None:
    """An own network and weights for it, and a graph of another."""
    (root / "nets.py").write_text(SOURCE)
    torch.manual_seed(7)
    torch.save(build_model(f"{root}/nets.py:build", in_channels=1, classes=10).state_dict(), root / "first.pt")
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and what many files come from
        axes: dict[str, Any] = {"input_names": ["images"], "dynamic_axes": {"images": {0: "batch"}}}
        torch.onnx.export(net, (torch.zeros(2, 1, 8, 8),), root / "first.onnx", dynamo=False, **axes)


class Double(nn.Module):
    """A graph in float64, behind float32 images."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x.double())


def in_double(path: Path, dataset: Dataset) -> Start:
    start = start_from_graph(path)(dataset)
    return replace(start, build=lambda: Double(start.build()))


def run_all(root: Path, elsewhere: Path) -> dict[str, Any]:
    """Every run of the tables, in a process of several; what this one wrote, and what it judged at each selection."""
    if not world().leads:
        os.chdir(elsewhere)
    written, judged, real = writes_below(root), [], fitting.accuracies

    def accuracies(network: nn.Module, *arguments: Any, **more: Any) -> tuple[float, float]:
        judged.append({name: value.clone() for name, value in network.state_dict().items()})
        return real(network, *arguments, **more)

    fitting.accuracies = accuracies
    for name, values in (EQUAL | STARTED | OWN).items():
        run(values, root / "teacher", root / "two" / name)
    return {"written": written, "judged": judged} | small_checks()


def small_checks() -> dict[str, Any]:
    """Of the parts, while two processes are there."""
    split = load_dataset("digits").val
    # The last batch is a single image, so that one process has none of it.
    return {"accuracies": accuracy_of_a_seed(batch_size=len(split) - 1)}


def accuracy_of_a_seed(batch_size: int) -> tuple[float, float]:
    torch.manual_seed(3)
    threat, split = ThreatModel.of("linf", 0.1, 2), load_dataset("digits").val
    net = ROWS["norm-wide"](1, 10)
    return accuracies(net, split, threat, Draws(0), device=torch.device("cpu"), batch_size=batch_size)


def initial(name: str) -> dict[str, Tensor]:
    """The weights that a run began with."""
    torch.manual_seed(0)
    net = ROWS[(EQUAL | OWN)[name]["student"]](1, 10)
    return {f"net.{key}": value for key, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and every run of the tables in one process."""
    root = tmp_path_factory.mktemp("distributed")
    Child(run_alone, root).result()
    return root


def run_alone(root: Path) -> None:
    teacher = PLAIN | {"method": "standard", "epochs": 12, "limit_train": 640, "lr": 0.3, "schedule": "cyclic"}
    run(teacher, Path("none"), root / "teacher")
    first_weights(root)
    for name, values in (EQUAL | STARTED | OWN).items():
        run(values, root / "teacher", root / "one" / name)


@pytest.fixture(scope="module")
def pair(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same in two processes; what each of them found."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    children = together(2, met, run_all, root, elsewhere)
    found = [child.result() for child in children]
    assert list(elsewhere.iterdir()) == []
    return found


def student(folder: Path) -> dict[str, Tensor]:
    return load_state(folder / "last.ckpt")["student"]


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Largest difference in a tensor, relative to the tensor's largest value; of the worst tensor."""
    assert one.keys() == two.keys()
    pairs = [(value.double(), two[key].double()) for key, value in one.items()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)


@pytest.mark.parametrize("name", EQUAL | STARTED)
def test_two_processes_train_what_one_does(root: Path, pair: list[Any], name: str) -> None:
    """The last weights, the best ones and the figures of every epoch; 1e-15 was measured."""
    one, two = RunFolder(root / "one" / name), RunFolder(root / "two" / name)
    assert distance(student(one.path), student(two.path)) < 1e-9
    assert distance(load_file(one.best), load_file(two.best)) < 1e-9
    for alone, shared in zip(one.records(), two.records(), strict=True):
        assert alone.pop("event") == shared.pop("event")
        assert untimed(alone) == pytest.approx(untimed(shared), rel=1e-9)
    assert read_weights(two.best)[1].training["processes"] == 2


def test_these_runs_learn_something(root: Path, pair: list[Any]) -> None:
    """Equal weights mean nothing if they do not move, or if those of one row are another's."""
    ends = [student(root / "two" / name)[FIRST] for name in EQUAL]
    gaps = [float((a - b).norm() / b.norm()) for at, a in enumerate(ends) for b in ends[at + 1 :]]
    assert min(gaps) > 1e-5
    moved = [float((student(root / "two" / name)[FIRST] - initial(name)[FIRST]).norm()) for name in EQUAL]
    assert min(moved) > 1e-3
    records = RunFolder(root / "one" / "dgad").records()
    assert 0.05 < records[0]["teacher_wrong"] < 0.95
    for name in STARTED:
        losses = [record["loss"] for record in RunFolder(root / "one" / name).records()[:-1]]
        assert len(set(losses)) == len(losses) == 3


def test_statistics_of_each_process_are_nearly_those_of_the_batch(root: Path, pair: list[Any]) -> None:
    """Without sync_bn each process normalises with its own 16 images of the batch's 32, so the weights differ: by how
    much a mean of 16 images differs from one of 32, which is noise of the batch and no error that adds up. After nine
    steps a tensor of one run differs from the other run's by at most 8 % of the way it has come, the loss by 0.05 %."""
    name = "own statistics"
    alone, shared = RunFolder(root / "one" / name), RunFolder(root / "two" / name)
    begin, one, two = initial(name), student(alone.path), student(shared.path)
    for key in (key for key in begin if key.endswith("weight")):
        assert 1e-6 < (one[key] - two[key]).norm() / (one[key] - begin[key]).norm() < 0.25
    losses = [[record["loss"] for record in folder.records()[:-1]] for folder in (alone, shared)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_all_processes_judge_the_same_network(pair: list[Any]) -> None:
    """Averages of weights and statistics included: each process judges its share of the images."""
    ours, theirs = (found["judged"] for found in pair)
    assert len(ours) == 3 * len(EQUAL | STARTED | OWN)
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_only_the_leader_writes(root: Path, pair: list[Any]) -> None:
    leader, other = (found["written"] for found in pair)
    assert other == []
    assert len(leader) > 100
    for name in EQUAL | STARTED | OWN:
        folders = [{path.name for path in (root / n / name).iterdir()} for n in ("one", "two")]
        assert folders[0] == folders[1]


def test_accuracies_are_those_of_all_images(pair: list[Any]) -> None:
    expected = accuracy_of_a_seed(batch_size=50)
    assert [found["accuracies"] for found in pair] == [expected, expected]


def test_common_statistics_need_gpus(root: Path, tmp_path: Path) -> None:
    """torch's SyncBatchNorm has no kernels for a CPU. One process has the whole batch anyway."""
    values = OWN["own statistics"] | {"sync_bn": True, "epochs": 1}
    for child in together(2, run, values, root / "teacher", tmp_path / "two"):
        how, message = child.outcome()
        assert how == "refused"
        assert "sync_bn needs GPUs, and these 2 processes are on the cpu" in message
    assert not (tmp_path / "two").exists()
    Child(run, values, root / "teacher", tmp_path / "with").result()
    Child(run, values | {"sync_bn": False}, root / "teacher", tmp_path / "without").result()
    one, other = (load_file(RunFolder(tmp_path / name).best) for name in ("with", "without"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def average() -> list[Tensor]:
    """Statistics before and after: means of each process, and variances that all have in common."""
    net = nn.BatchNorm2d(1000)
    net.running_mean.copy_(torch.randn(1000, generator=torch.Generator().manual_seed(world().rank)))
    net.running_var.copy_(torch.rand(1000, generator=torch.Generator().manual_seed(9)))
    before = [net.running_mean.clone(), net.running_var.clone()]
    average_statistics(net)
    return [*before, net.running_mean, net.running_var]


def test_averaging_leaves_alone_what_all_have_in_common() -> None:
    """A third of three times a number is often not that number. So constants of normalisation keep their bits, and so
    do statistics that are averaged once more, when a run is resumed that was interrupted while it selected."""
    found = [child.result() for child in together(3, met, average)]
    mean = torch.stack([own for own, *_ in found]).double().mean(dim=0).float()
    for _, common, averaged, still in found:
        torch.testing.assert_close(averaged, mean)
        assert torch.equal(averaged, found[0][2])
        assert torch.equal(still, common)


SHARED = OWN["own and ema"] | {"checkpoint_minutes": 1e-9, "limit_train": 320, "method": "dgad"}


@pytest.fixture(scope="module")
def shared(root: Path) -> RunFolder:
    """A run of two processes, with statistics and an average in each, to which nothing happened."""
    for child in together(2, run, SHARED, root / "teacher", root / "shared"):
        child.result()
    return RunFolder(root / "shared")


def test_two_processes_that_are_killed_resume_to_the_same_bits(root: Path, shared: RunFolder, tmp_path: Path) -> None:
    """One of them dies at a random moment, as a process whose machine is lost; the other finds out."""
    draw, kills, noticed, number = random.Random(0), 0, 0, 0
    while True:
        cut = RunFolder(tmp_path / str(number))
        children = together(2, run, SHARED, root / "teacher", cut.path, cut.exists())
        if kills == 5 or children[0].ends_within(draw.uniform(0.1, 0.8)):
            for child in children:
                child.result()
            assert_same_run(shared, cut)
            if kills == 5:
                break
            number += 1
            continue
        kills += 1
        one, other = children[:: 1 if kills % 2 else -1]
        one.kill()
        one.outcome()
        if not other.ends_within(10):
            other.kill()  # it waits for one that never came, until torchrun ends it
        noticed += other.outcome()[0] == "failed"
    assert noticed > 0


def test_a_signal_to_one_process_stops_both_at_the_same_step(root: Path, shared: RunFolder, tmp_path: Path) -> None:
    cut = RunFolder(tmp_path / "run")
    children = together(2, run, SHARED, root / "teacher", cut.path)
    while not cut.last.is_file():
        assert not children[0].ends_within(0.005)
    children[1].kill(signal.SIGTERM)
    assert [child.outcome() for child in children] == [("interrupted", None)] * 2
    assert not cut.finished()
    how, message = Child(run, SHARED, root / "teacher", cut.path, True).outcome()
    assert how == "refused"
    assert "was begun with another number of processes: 2, not 1" in message
    for child in together(2, run, SHARED, root / "teacher", cut.path, True):
        child.result()
    assert_same_run(shared, cut)


def test_torchrun_starts_the_command(tmp_path: Path) -> None:
    """As a user types it; one result, one folder."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "cli", "train", "--out", str(out), "--json", "--quiet", "--method", "trades", "--epochs", "1"]
    command += ["--limit-train", "64", "--set", "threat.steps=1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert [record["event"] for record in RunFolder(out).records()] == ["epoch", "end"]
    assert read_weights(out / "best.safetensors")[1].training["processes"] == 2
