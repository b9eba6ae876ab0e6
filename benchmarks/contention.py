"""What it costs when other programs want the same cores.

    python benchmarks/contention.py
    python benchmarks/contention.py --workloads apgd,train --rounds 7 --try OMP_WAIT_POLICY=PASSIVE
    python benchmarks/contention.py --try "GOMP_SPINCOUNT=3000 session.intra_op.allow_spinning=0" --only

Each workload runs alone and beside one process per core that does nothing but compute. A fair scheduler leaves half of
each core then, so a ratio of 2.0 is what to expect. `plain` is what torch and ONNX Runtime do unasked, `ours` what
`dgad` sets. Settings to try are variables of the environment and entries of ONNX Runtime's sessions. Each workload has
a process for each setting; they take turns, and medians are printed. `least` is the fastest idle run, to compare
settings by where the machine is never quite idle.

    apgd    APGD-CE, 25 steps, 8 images of 32x32, an ONNX file of wrn-16-2: gradients by torch, answers by ONNX Runtime
    square  Square, 100 queries, 50 images of 32x32, an ONNX file of resnet8: nearly all of it is ONNX Runtime
    digits  PGD, 40 steps, 32 images of 8x8, an ONNX file of resnet8: operators of microseconds
    train   a training step of DGAD, resnet8 from resnet20, 64 images of 8x8, as on the digits
    train32 the same, resnet8 from resnet8, 64 images of 32x32
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.onnx_open.image_input import Shape

Call = Callable[[], object]
SHARED = "shared"
"""In a setting, in place of variables: call `share_cores`, as `dgad` does."""
SETTINGS = {"plain": "session.force_spinning_stop=0", "ours": SHARED}
SPIN = "while True: pass"
REST = 2.5
"""Seconds until ours has noticed that it is alone again."""
RGB, DIGITS = (3, 32, 32), (1, 8, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--try", action="append", default=[], dest="tried", metavar="SETTING")
    parser.add_argument("--only", action="store_true", help="nothing but the settings to try")
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes beside [one per core]")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    settings = ({} if arguments.only else SETTINGS) | {text: text for text in arguments.tried}
    print(f"{os.cpu_count()} cores, {arguments.busy} busy processes, medians of {arguments.rounds} rounds")
    columns = ("idle s", "least", "loaded s", "from", "to", "ratio")
    width = max(map(len, settings)) + 2
    print(f"{'workload':<10}{'setting':<{width}}" + "".join(f"{each:>10}" for each in columns), flush=True)
    for workload in arguments.workloads.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows = compare(workload, settings, folder, arguments.rounds, arguments.busy)
        for name, (idle, loaded) in rows.items():
            alone, beside = statistics.median(idle), statistics.median(loaded)
            cells = (alone, min(idle), beside, min(loaded), max(loaded), beside / alone)
            print(f"{workload:<10}{name:<{width}}" + "".join(f"{each:>10.2f}" for each in cells), flush=True)


def compare(
    workload: str, settings: Mapping[str, str], folder: str, rounds: int, busy: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each round alone and beside busy processes, by setting."""
    workers = {name: Worker(workload, setting, f"{folder}/{n}") for n, (name, setting) in enumerate(settings.items())}
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in workers}
    for worker in workers.values():
        worker.answer()
    for _ in range(rounds):
        for name, worker in workers.items():
            found[name][0].append(worker.seconds())
        with processes(busy):
            for name, worker in workers.items():
                found[name][1].append(worker.seconds())
    for worker in workers.values():
        worker.close()
    return found


@contextmanager
def processes(number: int) -> Iterator[None]:
    """Processes that do nothing but compute."""
    started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(number)]
    time.sleep(0.5)  # until they do
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()
        time.sleep(REST)


class Worker:
    """A workload under a setting, in a process that waits until it is asked."""

    def __init__(self, workload: str, setting: str, folder: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
        words = [word.partition("=") for word in setting.split() if "=" in word]
        variables = {name: value for name, _, value in words if not name.startswith("session.")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", workload, setting, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | variables,
        )

    def seconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> float:
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def serve(workload: str, setting: str, folder: str) -> None:
    """The process of a `Worker`: it prints the seconds of one call, and of another for each line that it is given."""
    if setting == SHARED:
        from dgad_tk.cores import share_cores

        share_cores()
    set_sessions([word.split("=") for word in setting.split() if word.startswith("session.")])
    Path(folder).mkdir()
    call = WORKLOADS[workload](Path(folder))
    call()
    print(timed(call), flush=True)
    for _ in sys.stdin:
        print(timed(call), flush=True)


def timed(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def set_sessions(entries: list[list[str]]) -> None:
    """Give every session of ONNX Runtime these entries, whatever it had for them."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # it warns of entries that are set twice
    opened = onnxruntime.InferenceSession

    def opened_so(model: Any, options: Any, **others: Any) -> Any:
        for key, value in entries:
            options.add_session_config_entry(key, value)
        return opened(model, options, **others)

    if entries:
        onnxruntime.InferenceSession = opened_so


def onnx_file(folder: Path, name: str, shape: "Shape") -> Path:
    """A network that nobody trained, with one class so far above the others that attacks go on to their end."""
    import torch

    from dgad_tk.artifacts.record import Artifact
    from dgad_tk.artifacts.weights import save_weights
    from dgad_tk.models import build_model
    from exporters.export import export

    torch.manual_seed(0)
    net = build_model(name, in_channels=shape[0], classes=10)
    with torch.no_grad():  # statistics of its own, so that folding has something to fold
        net.train()(torch.rand(64, *shape))
        *_, last = (module for module in net.modules() if isinstance(module, torch.nn.Linear))
        last.bias[0] += 10
    record = Artifact(model=name, classes=[str(c) for c in range(10)], input_shape=shape, dataset="none")
    save_weights(folder / "source.safetensors", net, record)
    export(folder / "source.safetensors", "onnx", folder / "student.onnx")
    return folder / "student.onnx"


def attack(name: str, shape: "Shape", images: int, build: Callable[[Any], Any]) -> Callable[[Path], Call]:
    def prepared(folder: Path) -> Call:
        import numpy as np

        from evaluators.target.estimators import to_estimator
        from exporters.formats import load

        built = build(to_estimator(load(onnx_file(folder, name, shape))))
        x, y = np.random.default_rng(0).random((images, *shape), dtype=np.float32), np.zeros(images, dtype=np.int64)
        return lambda: built.generate(x, y)

    return prepared


def apgd(estimator: Any) -> Any:
    from evaluators.attacks.autoattack.apgd.apgd import APGD

    return APGD(estimator, eps=1 / 255, steps=25)


def square(estimator: Any) -> Any:
    from evaluators.attacks.autoattack.square.square import Square

    return Square(estimator, eps=1 / 255, queries=100)


def pgd(estimator: Any) -> Any:
    from evaluators.attacks.pgd import ProjectedGradient

    return ProjectedGradient(estimator, eps=0.01, step_size=0.005, steps=40)


def training(student: str, teacher: str, shape: "Shape", images: int) -> Callable[[Path], Call]:
    def prepared(folder: Path) -> Call:
        import torch
        from train_step import ours

        from dgad_tk.ascent.folded import Inner
        from dgad_tk.models import build_model

        torch.manual_seed(0)
        net, guide = (build_model(name, in_channels=shape[0], classes=10) for name in (student, teacher))
        with torch.no_grad():
            for each in (net, guide):
                each.train()(torch.rand(64, *shape))
        step = ours(net, guide.eval().requires_grad_(False), Inner())
        x, noise, y = torch.rand(images, *shape), torch.randn(images, *shape), torch.arange(images) % 10
        return lambda: step.seconds(x, y, noise)

    return prepared


WORKLOADS = {
    "apgd": attack("wrn-16-2", RGB, 8, apgd),
    "square": attack("resnet8", RGB, 50, square),
    "digits": attack("resnet8", DIGITS, 32, pgd),
    "train": training("resnet8", "resnet20", DIGITS, 64),
    "train32": training("resnet8", "resnet8", RGB, 64),
}

if __name__ == "__main__":
    main()
