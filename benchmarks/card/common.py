"""What the parts share: where they run, clocks, `dgad` as a user starts it."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[2]


def device_of(options: argparse.Namespace) -> torch.device:
    return torch.device("cpu" if options.cpu else "cuda")


def wait(options: argparse.Namespace) -> None:
    """Until the card has done all that it was given."""
    if not options.cpu:
        torch.cuda.synchronize()


def in_turns(
    calls: dict[str, Callable[[], None]], options: argparse.Namespace, *, seconds: float, each: int = 4
) -> dict[str, list[float]]:
    """Seconds of a call, by name and round: after three to warm up, `each` calls of one, then of the next, and so on.

    Args:
        seconds: over which rounds are begun, for all names together; there are three at least.
    """
    if options.cpu:
        seconds, each = 0.0, 1
    for call in calls.values():
        for _ in range(1 if options.cpu else 3):
            call()
    wait(options)
    found: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < (1 if options.cpu else 3) or (time.perf_counter() < until and rounds < 100):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(each):
                call()
            wait(options)
            found[name].append((time.perf_counter() - begun) / each)
        rounds += 1
    return found


def timed(call: Callable[[], None], options: argparse.Namespace) -> float:
    """Median seconds of a call."""
    return median(in_turns({"": call}, options, seconds=options.step_seconds, each=1)[""])


def matrix_peaks(options: argparse.Namespace) -> dict[str, float]:
    """Floating-point operations a second of a large matrix product: in bfloat16, and in float32 as torch runs it."""
    n, device, found = 256 if options.cpu else 8192, device_of(options), {}
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True  # as convolutions do
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        spent = in_turns({name: lambda a=a, b=b: a @ b}, options, seconds=1.0, each=10)[name]  # type: ignore[misc]
        found[name] = 2 * n**3 / median(spent)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return found


def dgad(*arguments: str | Path, folder: Path) -> tuple[int, str, float]:
    """`dgad ARGUMENTS` in a process of its own: exit code, standard output, seconds."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout, time.perf_counter() - begun


def must(*arguments: str | Path, folder: Path) -> tuple[str, float]:
    """The same, where a failure ends the part."""
    code, out, seconds = dgad(*arguments, folder=folder)
    if code:
        print(f"`dgad {' '.join(map(str, arguments))}` ended with {code}", file=sys.stderr)
        sys.exit(code)
    return out, seconds
