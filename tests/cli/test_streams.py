"""Escape codes on terminals, closed pipes, full disks and Ctrl-C, on processes as users start them."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from shared import ROOT, Run
from terminals import ESCAPE, on_terminal, run_on_terminal

from cli import app
from cli.app import COMMANDS
from exporters.export import export

COMMAND = [sys.executable, "-m", "cli"]
PLAIN = [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}]


def environment(**more: str) -> dict[str, str]:
    """Buffered, as usual, unless something else is asked for."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
        "PYTHONPATH": str(ROOT),
        **more,
    }


@pytest.mark.parametrize("variables", PLAIN)
def test_no_escape_codes_on_any_command(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """stdout and stderr are one terminal; training, attack, tables, progress, help and errors."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), on_terminal(80, **variables) as screen:
        codes = [app.run([name, "--help"]) for name in COMMANDS]
        codes += [app.run(arguments) for arguments in ([], ["--help"], ["list", "suites"], ["list", "schemas"])]
        codes += [app.run(["train", "--method", "standard", "--epochs", "2", "--limit-train", "64"])]
        codes += [app.run(["export", str(weights), "--format", "torchscript"])]
        codes += [
            app.run(["attack", "--model", str(weights), "--attack", "fgsm", "--limit", "10", *more])
            for more in ([], ["--dry-run"])
        ]
        codes += [app.run(["bench", str(weights), "--seconds", "0.05", "--batch", "1"])]
        failed = [app.run(["list", "suitess"]), app.run(["gate", "nowhere", "--min", "pgd=1%"])]
    assert codes == [0] * len(codes)
    assert failed == [2, 2]
    assert ESCAPE not in screen.text
    assert "worst case linf" in screen.text
    assert "epoch 2/2" in screen.text


def test_with_colour_there_are_some(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above can fail."""
    monkeypatch.chdir(tmp_path)
    with on_terminal(80) as screen:
        code = app.run(["attack", "--model", str(weights), "--attack", "fgsm", "--limit", "10"])
    assert code == 0
    assert f"{ESCAPE}[1m" in screen.text  # bold
    assert f"{ESCAPE}[2K" in screen.text  # a line drawn anew


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_process_on_a_terminal(tmp_path: Path, variables: dict[str, str], coloured: bool) -> None:
    """What Typer itself prints in colour."""
    install = ["--install-completion", "fish"]
    more = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code, screen = run_on_terminal(install, 80, tmp_path, **more, **variables)
    assert code == 0
    assert (ESCAPE in screen.text) == coloured


@pytest.mark.parametrize("width", [60, 80])
def test_lists_and_help_fit(tmp_path: Path, width: int) -> None:
    with on_terminal(width, NO_COLOR="1") as screen:
        for what in ("datasets", "methods", "recipes", "schemas", "suites"):
            assert app.run(["list", what]) == 0
    found = screen.lines
    for arguments in (["--help"], ["attack", "--help"], ["train", "--help"]):
        code, screen = run_on_terminal(arguments, width, tmp_path, NO_COLOR="1")
        assert code == 0
        found += screen.lines
    assert [line for line in found if len(line) > width] == []
    assert any(line.split()[0] == "paper/table1/cifar10-wrn34-10-pgd-at" for line in found if line)


@pytest.mark.parametrize("width", [60, 80])
def test_tables_of_export_and_bench_fit(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.chdir(tmp_path)
    export(weights, "torchscript", Path("student.pt"))
    with on_terminal(width, NO_COLOR="1") as screen:
        assert app.run(["export", str(weights), "--format", "torchscript"]) == 0
        timed = [
            "bench",
            "student.pt",
            "student.pt",
            "--trust",
            "--seconds",
            "0.02",
            "--batch",
            "1,8",
            "--threads",
            "1",
        ]
        assert app.run([*timed, "--robust", "--limit", "10", "--quiet"]) == 0
    long = [line for line in screen.lines if len(line) > width]
    assert all(" " not in line.strip() or line.startswith(("next:", "note:")) for line in long), long
    assert "peak" not in screen.text.splitlines()[0]
    for heading in ("p50 ms", "p95 ms", "images/s", "x first", "memory", "runs", "95 % interval", "equal"):
        assert heading in screen.text, heading


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["list", "recipes"], ["--help"], ["list", "schema"], ["gate", "--help"]])
def test_a_closed_pipe_ends_quietly(arguments: list[str], unbuffered: str) -> None:
    """As in `dgad list recipes | head -1`, where nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    variables = environment(PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, env=variables, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_pipe_of_errors_too() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "list", "no"], stdout=subprocess.PIPE, stderr=writer, env=environment(), check=False
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (141, b"")


def test_another_pipe_that_is_closed_is_a_bug(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that to a process of ours: the output is still read."""

    def broken(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("dgad_tk.training.train.train", broken)
    monkeypatch.setattr(app, "_is_closed", lambda stream: False)
    code, _, err = dgad("train", "--quiet")
    assert code == 3
    assert "Traceback" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["list", "recipes"], ["list", "schema"], ["--help"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        variables = environment(PYTHONUNBUFFERED=unbuffered)
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=variables, check=False
        )
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == "error: the system refused: No space left on device"
    assert hint.startswith("hint: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_where_not_even_the_error_can_be_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "list", "no"], stdout=full, stderr=full, env=environment(), check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_is_closed_from_the_start(closed: str) -> None:
    shell = f'"{sys.executable}" -m cli list suites {closed}>&-'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPTED = """
import signal, sys
from cli import app
from cli.printing import terminal
signal.signal(signal.SIGINT, signal.default_int_handler)
shown = terminal.shown
def interrupted(text):
    if text == "pgd":
        signal.raise_signal(signal.SIGINT)
    return shown(text)
terminal.shown = interrupted
def table(what):
    terminal.plain_table(["attack", "robust"], [["fgsm", "1.0%"], ["pgd", "2.0%"]])
app.app.command("table")(lambda: table("x"))
sys.argv = ["dgad", "table"]
app.main()
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_a_table_is_printed(ignored: bool) -> None:
    """Also where the tests run in the background of a script: shells let such processes ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:  # a child inherits what is ignored
        command = [sys.executable, "-c", INTERRUPTED]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 130
    assert "pgd" not in done.stdout
    assert done.stderr.strip() == "interrupted"
    assert signal.SIGINT == 2
