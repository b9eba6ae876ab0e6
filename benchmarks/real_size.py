"""Memory and images a second of training at real sizes, with whole batches and with batches in parts.

    python benchmarks/real_size.py --student torchvision:mobilenet_v3_small --size 224 --batch-size 32 --accumulate 1,4

Each method and number of parts is run twice as `dgad train` runs it, on random images: in a process of its own for the
largest memory it ever held (peak RSS, with what importing and building took beside it), and in one process in which all
take turns for the speed, as a median over the rounds: by the clock, and by the processor time of all threads, which
other programs on the machine lengthen less.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import DATASETS, Dataset, Split
from dgad_tk.methods import build_method, find_method
from dgad_tk.models import build_model
from dgad_tk.training.epoch import Loop, Position
from dgad_tk.training.job import Job
from dgad_tk.training.learner import Learner

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="torchvision:mobilenet_v3_small")
    parser.add_argument("--teacher", default="torchvision:mobilenet_v3_large", help="of methods that have one")
    parser.add_argument("--methods", default="standard,pgd-at,dgad")
    parser.add_argument("--size", default="224", help="224, or height x width: 160x256")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulate", default="1,4")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16, in both steps")
    parser.add_argument("--rounds", type=int, default=3, help="0 leaves the speed out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(memory(arguments, *json.loads(arguments.one))))
        return
    variants = [
        (method, int(parts)) for method in arguments.methods.split(",") for parts in arguments.accumulate.split(",")
    ]
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{arguments.student} at {arguments.size}, batch {arguments.batch_size}, {arguments.precision}", flush=True)
    held = {variant: (0, 0) if arguments.no_memory else in_own_process(variant) for variant in variants}
    seconds = speed(arguments, variants)
    print(f"{'':<16}{'peak RSS':>11}{'before':>9}{'images/s':>10}{'of processor time':>19}{'from':>7}{'to':>7}")
    for (method, parts), (peak, before) in held.items():
        line = f"{method:<10}{parts:>6}{peak / 2**20:>7.0f} MiB{before / 2**20:>5.0f} MiB"
        if found := seconds[method, parts]:
            clock, busy = ([arguments.batch_size / each for each in which] for which in zip(*found, strict=True))
            line += (
                f"{statistics.median(clock):>10.2f}{statistics.median(busy):>19.2f}{min(busy):>7.2f}{max(busy):>7.2f}"
            )
        print(line)


def in_own_process(variant: tuple[str, int]) -> tuple[int, int]:
    command = [sys.executable, *sys.argv, "--one", json.dumps(variant)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, before = json.loads(done.stdout)
    return peak, before


def memory(arguments: argparse.Namespace, method: str, parts: int) -> tuple[int, int]:
    """Bytes: the most ever held after a step, and before it."""
    loop = prepared(arguments, method, parts)
    before = most_held()
    steps(loop, 1)
    return most_held(), before


def most_held() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


Seconds = dict[tuple[str, int], list[tuple[float, float]]]


def speed(arguments: argparse.Namespace, variants: list[tuple[str, int]]) -> Seconds:
    """Seconds of a step by the clock and of processor time, by variant and round; one step each goes before."""
    found: Seconds = {variant: [] for variant in variants}
    if not arguments.rounds:
        return found
    loops = {variant: prepared(arguments, *variant) for variant in variants}
    for number in range(arguments.rounds + 1):
        for variant, loop in loops.items():
            begun = time.perf_counter(), time.process_time()
            steps(loop, 1)
            if number:
                found[variant].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return found


def prepared(arguments: argparse.Namespace, method: str, parts: int) -> Loop:
    """The loop of a run on two batches of random images."""
    values: dict[str, Any] = {
        "dataset": "imagefolder",
        "image_size": arguments.size,
        "method": method,
        "student": arguments.student,
        "batch_size": arguments.batch_size,
        "accumulate": parts,
        "precision": arguments.precision,
        "outer_precision": arguments.precision,
        "lr": 1e-4,
    }
    config = TrainConfig.model_validate(values).resolved()
    height, width = (int(each) for each in (arguments.size.split("x") * 2)[:2])
    torch.manual_seed(0)
    student = build_model(arguments.student, in_channels=3, classes=CLASSES)
    teacher = None
    if find_method(method).needs_teacher:
        teacher = build_model(arguments.teacher, in_channels=3, classes=CLASSES).eval().requires_grad_(False)
    job = Job(
        config=config,
        method=build_method(method, {}),
        dataset=images(2 * arguments.batch_size, height, width),
        folder=RunFolder(Path("unused")),
        device=torch.device("cpu"),
        teacher=teacher,
    )
    return Loop(job, Learner(config, student))


def images(n: int, height: int, width: int) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    split = Split(pixels, np.arange(n), np.arange(n) % CLASSES)
    classes = [str(each) for each in range(CLASSES)]
    return Dataset(DATASETS["imagefolder"], "imagefolder", classes, split, split, split, {}, "")


class _Enough(Exception):
    pass


def steps(loop: Loop, count: int) -> None:
    """The first `count` steps of an epoch."""

    def stop(position: Position) -> None:
        if position.step == count:
            raise _Enough

    loop.learner.optimizer.zero_grad(set_to_none=True)
    try:
        loop.run(0, Position(), stop)
    except _Enough:
        return


if __name__ == "__main__":
    main()
