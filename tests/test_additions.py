"""What CONTRIBUTING says of additions: a file and a row, and the thing is everywhere. Tried in a copy of the tree."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared import ROOT

METHOD = '''"""Training on inverted images."""

from dataclasses import dataclass

from torch import nn

from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Method, Step


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Training on inverted images: L = weight CE(s(1 - x), y)."""

    weight: float = 1.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        logits = student(1 - batch.x)
        loss = self.weight * batch.mean(cross_entropy(logits, batch.y))
        return Step(loss, {"inverted": loss}, None, logits)
'''
ATTACK = '''"""One step towards white."""

from torch import Tensor

from evaluators.attacks.native import NativeAttack


class Toy(NativeAttack):
    """The brightest image of the ball."""

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return (x + self.eps).clamp(0, 1)
'''
FORMAT = '''"""Weights under a suffix of their own."""

from pathlib import Path

from torch import nn

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import load_model, read_weights, save_weights
from dgad_tk.common import sha256_file


def save_toy(model: nn.Module, artifact: Artifact, path: Path) -> None:
    save_weights(path, model, artifact)


def read_toy_record(path: Path) -> Artifact | None:
    return read_weights(path)[1]


def load_toy(path: Path, input_shape: tuple[int, int, int] | None, interface: Interface) -> Predictor:
    model, artifact = load_model(path)
    about = {"path": path, "sha256": sha256_file(path), "artifact": artifact, "interface": interface}
    return predictor_of_module(model, artifact.input_shape, format="toy", **about)
'''
ADDITIONS = [
    (
        "dgad_tk/methods/toy.py",
        METHOD,
        "dgad_tk/methods/__init__.py",
        "from dgad_tk.methods.toy import Toy",
        {"METHODS: dict[str, type[Method]] = {": '    "toy": Toy,'},
    ),
    (
        "evaluators/attacks/toy.py",
        ATTACK,
        "evaluators/attacks/__init__.py",
        "from evaluators.attacks.toy import Toy",
        {
            "ATTACKS: dict[str, AttackSpec] = {": (
                '    "toy": AttackSpec(kind="budget", norms=("linf",), build=_own(Toy), description="towards white"),'
            )
        },
    ),
    (
        "exporters/torch_files/toy.py",
        FORMAT,
        "exporters/formats.py",
        "from exporters.torch_files.toy import load_toy, read_toy_record, save_toy",
        {
            "EXPORTERS: dict[str, Format] = {": (
                '    "toy": Format("student.toy", save_toy, read_toy_record, EXACT, program_layers),'
            ),
            "LOADERS: dict[str, Load] = {": '    ".toy": load_toy,',
        },
    ),
]
COMMANDS = [
    ["list", "methods"],
    ["list", "attacks"],
    ["list", "formats"],
    ["train", "--method", "toy", "--set", "toy.weight=2", "--epochs", "1", "--limit-train", "64", "--out", "run"],
    ["export", "run", "--format", "toy"],
    ["inspect", "student.toy"],
    ["attack", "--model", "student.toy", "--attack", "toy", "--limit", "20", "--json"],
    ["attack", "--model", "student.toy", "--attack", "transfer:toy", "--limit", "20", "--surrogate", "student.toy"],
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product with a toy method, attack and format, each a file and its rows."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("cli", "dgad_tk", "evaluators", "exporters"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, table, line, rows in ADDITIONS:
        (tree / file).write_text(text, encoding="utf-8")
        content = (tree / table).read_text(encoding="utf-8")
        for opening, row in rows.items():
            assert content.count(opening) == 1
            content = content.replace(opening, f"{opening}\n{row}")
        first = content.index("\nfrom ")
        (tree / table).write_text(f"{content[:first]}\n{line}{content[first:]}", encoding="utf-8")
    return tree


def test_a_file_and_a_row_are_everywhere(copy: Path, tmp_path: Path) -> None:
    code = (
        f"from cli.app import run\nfor command in {COMMANDS!r}:\n"
        "    print('$', *command, flush=True)\n    assert run(command) == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, methods, attacks, formats, trained, exported, inspected, attacked, transferred = done.stdout.split("$ ")
    assert "Training on inverted images" in methods
    assert "towards white" in attacks
    assert "student.toy" in formats
    assert "by toy" in trained
    assert "verified against its source" in exported
    assert json.loads(inspected.partition("\n")[2])["metadata"]["method"] == "toy"
    row = json.loads(attacked.partition("\n")[2])["attacks"][0]
    assert (row["name"], row["status"], row["source"]) == ("toy", "done", "white-box")
    assert "transfer:student:toy" in transferred
