"""Completion: as the shells ask, and in a real bash; names come from the tables, and nothing heavy is imported."""

import importlib
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from shared import ROOT

from cli import completion
from cli.app import COMMANDS
from cli.completion import VALUES, answer_bash, keys_of
from dgad_tk.config.recipe import recipe_names
from dgad_tk.config.training import TrainConfig

TABLES = [
    ("cli.documents.table", "DOCUMENTS"),
    ("dgad_tk.config.optimizers", "OPTIMIZERS"),
    ("dgad_tk.data", "DATASETS"),
    ("dgad_tk.data.augment", "AUGMENTS"),
    ("dgad_tk.methods", "ADDONS"),
    ("dgad_tk.methods", "METHODS"),
    ("dgad_tk.data.images.resize", "RESIZES"),
    ("dgad_tk.models", "MODELS"),
    ("evaluators.attacks.art.table", "ART_ATTACKS"),
    ("evaluators.plan.suites", "SUITES"),
    ("evaluators.report.forms.table", "FORMS"),
    ("exporters.bench.worker", "PROVIDERS"),
    ("exporters.formats", "EXPORTERS"),
    ("exporters.onnx_write.calibration", "CALIBRATORS"),
    ("exporters.onnx_write.int8", "IMAGES"),
]


def asked(shell: str, *words: str, home: Path | None = None) -> list[str]:
    """What `dgad` answers a shell in which the last of the words is being typed."""
    variables = {"_DGAD_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT)}
    if shell == "bash":
        variables |= {"COMP_WORDS": "\n".join(["dgad", *words]), "COMP_CWORD": str(len(words))}
    else:
        variables |= {"_TYPER_COMPLETE_ARGS": " ".join(["dgad", *words])}
        variables |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "cli"], env=os.environ | variables, cwd=home, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(("module", "table"), TABLES)
def test_names_that_are_read_are_the_tables(module: str, table: str) -> None:
    assert keys_of(module, table) == list(getattr(importlib.import_module(module), table))


def test_every_table_that_is_read_is_compared_here(monkeypatch: pytest.MonkeyPatch) -> None:
    read = set()
    monkeypatch.setattr(completion, "keys_of", lambda *which: read.add(which) or [])
    for offered in VALUES.values():
        offered("")
    assert {*TABLES, ("evaluators.attacks", "ATTACKS")} == read | {("dgad_tk.methods", "ADDONS")}


def test_attacks_are_those_of_the_table() -> None:
    from evaluators.attacks import ATTACKS

    assert VALUES["attack.attack"]("") == list(ATTACKS)
    assert set(VALUES["attack.attack"]("tr")) == {*ATTACKS, *(f"transfer:{name}" for name in ATTACKS)}


def test_a_table_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LookupError, match="dgad_tk.methods has no literal METHOD"):
        keys_of("dgad_tk.methods", "METHOD")


def test_each_row_belongs_to_a_flag() -> None:
    flags = {f"{name}.{flag}" for name, command in COMMANDS.items() for flag in typing.get_type_hints(command)}
    for name in VALUES:
        assert name in flags or any(flag.endswith(f".{name}") for flag in flags), name


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["tr"], ["train"]),
        (["attack", "--attack", "apgd-"], ["apgd-ce", "apgd-dlr", "apgd-t"]),
        (["attack", "--attack", "transfer", ":", "pg"], ["pgd"]),
        (["attack", "--attack", "transfer:pg"], ["transfer:pgd"]),
        (["attack", "--attack", "=", "apgd-c"], ["apgd-ce"]),
        (["attack", "--attack", "=", "transfer", ":", "apgd-c"], ["apgd-ce"]),
        (["attack", "--suite", "="], ["fast", "quick", "paper", "full", "transfer", "blackbox"]),
        (["attack", "--suite", "f"], ["fast", "full"]),
        (["attack", "--norm", ""], ["linf", "l2", "l1", "l0"]),
        (["attack", "--split", ""], ["train", "val", "test"]),
        (["attack", "--layout", ""], ["nchw", "nhwc"]),
        (["train", "--resize", ""], ["squeeze", "crop", "pad"]),
        (["bench", "--dataset", "dig"], ["digits"]),
        (["bench", "--provider", ""], ["cpu", "cuda"]),
        (["export", "--format", "torch"], ["torchscript", "torch-export"]),
        (["export", "--calibrate-on", "a"], ["adversarial"]),
        (["export", "--calibration-method", "m"], ["minmax"]),
        (["list", "sc"], ["schemas", "schema"]),
        (["list", "schema", "dgad/", "b"], []),
        (["train", "--method", "adaa"], ["adaad"]),
        (["train", "--method", "adaad+"], ["adaad+igdm", "adaad+saad", "adaad+classwise"]),
        (["train", "--method", "adaad+saad+"], ["adaad+saad+igdm", "adaad+saad+classwise"]),
        (["train", "--method", "adaad+saad+ig"], ["adaad+saad+igdm"]),
        (["train", "--method", "adad+ig"], []),
        (["train", "--teacher-in-attack", ""], ["exact", "linear", "none"]),
        (["train", "--teacher-method", "tra"], ["trades"]),
        (["train", "--student", "resnet1"], ["resnet18"]),
        (["train", "--teacher-model", "wrn-34-1"], ["wrn-34-10"]),
        (["train", "--device", "c"], list(typing.get_args(TrainConfig.model_fields["device"].annotation))[1:]),
        (["train", "--config", "paper/"], [name for name in recipe_names() if name.startswith("paper/")]),
        (["train", "--teacher", "ru"], []),
        (["attack", "--model", "stu"], []),
        (["inspect", "stu"], []),
    ],
)
def test_bash(words: list[str], names: list[str]) -> None:
    assert asked("bash", *words) == (names or [""])


def test_zsh_and_fish() -> None:
    assert "\n".join(asked("zsh", "attack", "--suite", "f")) == """_arguments '*: :(("fast"\n"full"))'"""
    assert asked("zsh", "attack", "--model", "stu") == ["_files"]
    assert asked("fish", "attack", "--attack", "transfer:pg") == ["transfer:pgd"]
    assert asked("fish", "export", "--format", "onnx-") == ["onnx-fp16", "onnx-int8"]


@pytest.mark.parametrize("words", [["attack", "--attack", ""], ["train", "--student", ""], ["train", "--config", ""]])
def test_it_imports_nothing_heavy(words: list[str]) -> None:
    """Which is why it takes a fraction of a second."""
    code = (
        "import sys; from cli.app import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "print(*({'torch', 'torchvision', 'art', 'onnx', 'onnxruntime', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    variables = {"COMP_WORDS": "\n".join(["dgad", *words]), "COMP_CWORD": str(len(words))}
    variables |= {"_DGAD_COMPLETE": "complete_bash", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert len(lines) > 5
    assert lines[-1] == ""


def test_words_that_bash_took_apart_are_put_together() -> None:
    environment = {"COMP_WORDS": "dgad\nattack\n--attack\n=\ntransfer\n:\npg\n--quiet", "COMP_CWORD": "6"}
    answer_bash(lambda: None, environment)
    assert environment == {"COMP_WORDS": "dgad\nattack\n--attack=transfer:pg", "COMP_CWORD": "2"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_shown_and_installed(shell: str, tmp_path: Path) -> None:
    """Into the home that is given, and there it is what `--show-completion` prints."""
    variables = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}

    def dgad(*arguments: str) -> str:
        command = [sys.executable, "-m", "cli", *arguments]
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout

    shown = dgad("--show-completion", shell)
    assert f"complete_{shell}" in shown
    assert shell in dgad("--install-completion", shell)
    written = [path.read_text() for path in tmp_path.rglob("*dgad*") if path.is_file()]
    assert [text.strip() for text in written] == [shown.strip()]


BASH = """
dgad() { "$PYTHON" -m cli "$@"; }
export -f dgad
eval "$(_DGAD_COMPLETE=source_bash "$PYTHON" -m cli)"
COMP_WORDS=(dgad attack --attack "transfer" ":" "apgd-"); COMP_CWORD=5
_dgad_completion "$DGAD"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_a_real_bash(tmp_path: Path) -> None:
    """The function that it installs, called as bash does on the Tab key."""
    script = tmp_path / "dgad"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    script.chmod(0o755)
    variables = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "DGAD": str(script)}
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["apgd-ce", "apgd-dlr", "apgd-t"]
