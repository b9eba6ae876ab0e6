"""`dgad quickstart`: the three commands of the README, one after another."""

import shlex
import sys

import typer

COMMANDS = (
    ("train",),
    ("export", "--format", "onnx"),
    ("attack", "--model", "student.onnx", "--suite", "full"),
)


def quickstart() -> None:
    """Train on the embedded digits, export to ONNX, attack the file: the whole road with no argument."""
    from cli.app import run

    for command in COMMANDS:
        print(f"$ dgad {shlex.join(command)}", file=sys.stderr, flush=True)
        if code := run(command):
            raise typer.Exit(code)
