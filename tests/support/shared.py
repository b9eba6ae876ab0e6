"""What most tests share: the command in this process, an untrained network with its record, places."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import app
from dgad_tk.artifacts.record import Artifact

ROOT = Path(__file__).parents[2]
"""Of the repository."""

DIGITS = [str(digit) for digit in range(10)]


BRIEF = ["--epochs", "1", "--limit-train", "64", "--teacher-model", "resnet8", "--set", "threat.steps=1"]
BRIEF += ["--set", "threat.eps=0.15", "--set", "threat.step_size=0.15"]
"""Flags of `dgad train` for a run of seconds."""

Run = Callable[..., tuple[int, str, str]]
"""Arguments of `dgad` to exit code, stdout, stderr."""


def runner(capsys: pytest.CaptureFixture[str], *command: str) -> Run:
    """Runs `dgad`, or `dgad COMMAND`, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = app.run([*command, *map(str, arguments)])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def randomise_batch_norm(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every BatchNorm statistics and affine parameters of its own; untouched ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.data = low + (high - low) * torch.rand(tensor.shape, generator=generator)
    return model


def artifact(model: str = "resnet8", shape: tuple[int, int, int] = (1, 8, 8), **more: object) -> Artifact:
    """A record as training writes it."""
    fields: dict[str, object] = {
        "model": model,
        "classes": DIGITS,
        "input_shape": shape,
        "dataset": "digits",
        "method": "dgad",
        "threat": {"norm": "linf", "eps": 0.15, "step_size": 0.0375, "steps": 10},
    }
    return Artifact.model_validate(fields | more)


Victim = tuple[torch.nn.Module, np.ndarray, np.ndarray]


def refused(result: tuple[int, str, str], message: str) -> None:
    """Exit code 2, nothing on stdout, one line of error and one of hint, no traceback."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert message in lines[0], lines[0]
    assert "Traceback" not in err
    assert len(lines[1]) > len("hint: ")
