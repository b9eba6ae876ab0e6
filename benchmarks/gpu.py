"""What dgad-tk does on a CUDA card, in six minutes: is it right, how fast does it train and attack, what comes of it.

    python benchmarks/gpu.py --data-dir cifar --out runs/gpu
    python benchmarks/gpu.py --only tests,passes,digits --minutes 6

`cifar` holds CIFAR-10 as JPEG or PNG files, `train/CLASS/*` and `test/CLASS/*`; without it, scikit-learn's digits take
their place. Nothing is downloaded. The parts, in the order in which they run, each with a limit of its own:

    versions   what card, what libraries
    golden     a step of each method in float64, against the authors' released code
    steps      images a second of PGD-10 and DGAD steps, against plain ones and the card's matrix peak
    train      DGAD into ResNet-18 for two minutes, start included, then clean accuracy and autoattack-fast
    attack     AutoAttack on that network, beside pyautoattack
    resume     a run killed by SIGKILL and resumed
    tests, passes, digits   by --only: `pytest -m gpu`, passes of attacks, the three commands of a first day

Each part is a process of its own, prints tables for docs/measurements.md as it ends, and one that fails is named at
the end while the others go on (exit code 1). What has succeeded is kept in `--out`, and the same command runs only the
rest. Without a card it says so and exits with 2; `--cpu` tries the script there with tiny numbers, which measure
nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from card.attacking import attack, passes
from card.checks import digits, tests, versions
from card.common import ROOT
from card.golden import golden
from card.resuming import resume
from card.steps import steps
from card.training import train


@dataclass(frozen=True)
class Part:
    """A part: what runs, for how many seconds at most, and whether without being asked for."""

    run: Callable[[argparse.Namespace], None]
    seconds: float
    asked: bool = False


PARTS = {
    "versions": Part(versions, 30),
    "golden": Part(golden, 40),
    "steps": Part(steps, 100),
    "train": Part(train, 200),
    "attack": Part(attack, 110),
    "resume": Part(resume, 60),
    "tests": Part(tests, 180, asked=True),
    "passes": Part(passes, 120, asked=True),
    "digits": Part(digits, 180, asked=True),
}
"""In the order in which they run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=6.0, help="for all parts together")
    parser.add_argument("--only", help=f"parts, comma between: {','.join(PARTS)}")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10 as image files")
    parser.add_argument("--network", type=Path, help="that AutoAttack is timed on [what the part train leaves]")
    parser.add_argument("--images", type=int, default=200, help="test images that are attacked")
    parser.add_argument("--train-seconds", type=float, default=100.0, help="of training, teacher and student together")
    parser.add_argument("--step-seconds", type=float, default=1.2, help="over which one way of a step is timed")
    parser.add_argument("--cpu", action="store_true", help="try the script without a card")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # set for the processes that this one starts
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.cpu:
        print("no card: torch sees no CUDA device here; --cpu tries the script without one", file=sys.stderr)
        sys.exit(2)
    if options.part:
        PARTS[options.part].run(options)
        return
    names = options.only.split(",") if options.only else [name for name, part in PARTS.items() if not part.asked]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    until, bad = time.monotonic() + 60 * options.minutes, []
    for name in names:
        text = options.out / f"{name}.md"
        left = until - time.monotonic()
        if not text.is_file():
            limit = min(left, PARTS[name].seconds * (10 if options.cpu else 1))
            if why := "no time was left" if left < 1 else run_part(name, text, limit):
                bad.append(f"{name}: {why}")
        for written in (text, text.with_suffix(".partial")):
            if written.is_file():
                print(written.read_text(), flush=True)
                break
    for line in bad:
        print(f"not measured: {line}")
    sys.exit(1 if bad else 0)


def run_part(name: str, text: Path, seconds: float) -> str:
    """Run a part in a process of its own and keep what it prints; why there is nothing to keep, if so."""
    log, partial = text.with_suffix(".log"), text.with_suffix(".partial")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))}
    command = [sys.executable, *sys.argv, "--part", name]
    with log.open("w") as errors, partial.open("w") as output:
        # A session of its own: what the part has started ends with it.
        run = subprocess.Popen(command, stdout=output, stderr=errors, env=environment, start_new_session=True)
        try:
            code = run.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, 9)
            run.wait()
            return f"not done within {seconds:.0f} s; see {log}"
    if code:
        last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        return f"exit code {code}: {last}; see {log}"
    partial.replace(text)
    return ""


if __name__ == "__main__":
    main()
