"""AutoAttack on a file that takes one image at a time: ours on the file, and its authors' package on the same network.

    python benchmarks/fixed_batch.py --images 40 --repeats 3

The network is a ResNet of 6 convolutions, trained for a minute by FGSM on the digits of scikit-learn, enlarged to 32
pixels and tinted, so that some images survive. `torch.onnx.export` writes it twice: with batch 1, as most files of
VNN-COMP are, and with a free batch. `fixed` and `free` are the evaluation of each file, as `dgad attack` runs it: the
clean pass, the checks of the model, AutoAttack with 5,000 queries, the verdicts of ONNX Runtime. `module` is the
authors' package (`pyautoattack`) on the torch module that was exported, and `converted` on the torch module that dgad
makes of the fixed file, on the same images; with no checks and no ONNX Runtime. Each kind has a process of its own.
Runs are interleaved; medians are printed, and the medians of ratios within a round.

`--black-box` times Square alone, on the files and by the authors' class on the module.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from pyautoattack import AutoAttack as AuthorsAutoAttack
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from dgad_tk.data import Split, load_dataset
from evaluators.engine.evaluate import default_batch_size, evaluate
from evaluators.plan.rows import plan
from evaluators.target.judge import images_of
from exporters.formats import load

SIDE, IMAGES, STEPS, BATCH = 32, 640, 240, 64
KINDS = ("fixed", "free", "module", "converted")
Found = tuple[float, int, dict[str, float]]
"""Seconds, robust images, and seconds by stage."""


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))
        self.shortcut = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](self.first(x)).relu()
        result: Tensor = (self.norms[1](self.second(inner)) + self.shortcut(x)).relu()
        return result


class SmallResNet(nn.Module):
    """Six convolutions: one, two and two, and a shortcut."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Linear(2 * width * (SIDE // 8) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = nn.functional.avg_pool2d(self.blocks(self.stem(x).relu()), 2)
        logits: Tensor = self.head(features.flatten(1))
        return logits


def pictures(part: Split, count: int) -> Split:
    """The first images, enlarged, each in a colour of its own."""
    grey = torch.from_numpy(part.take(slice(0, count)).astype(np.float32))
    colour = torch.from_numpy(np.random.default_rng(0).uniform(0.6, 1, (len(grey), 3, 1, 1)).astype(np.float32))
    images = (interpolate(grey, (SIDE, SIDE), mode="bilinear") * colour).round().byte().numpy()
    return Split(images, np.arange(len(images)), part.labels[: len(images)])


def trained(eps: float) -> tuple[nn.Module, Split]:
    """The network, and the test images."""
    digits = load_dataset("digits")
    learn, test = pictures(digits.train, IMAGES), pictures(digits.test, len(digits.test))
    x, y = torch.from_numpy(learn.take(slice(None)) / np.float32(255)), torch.from_numpy(learn.labels)
    torch.manual_seed(0)
    net = SmallResNet()
    updates = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(STEPS):
        rows = slice(BATCH * step % IMAGES, BATCH * step % IMAGES + BATCH)
        images = (x[rows] + eps * torch.empty_like(x[rows]).uniform_(-1, 1)).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(images), y[rows]), images)
        moved = (images + 1.25 * eps * gradient.sign()).detach()
        images = moved.clamp(x[rows] - eps, x[rows] + eps).clamp(0, 1)
        cross_entropy(net(images), y[rows]).backward()
        updates.step()
        updates.zero_grad()
    return net.eval().requires_grad_(False), test


def write(net: nn.Module, folder: Path) -> None:
    """The network as a module, and as files of batch 1 and of any batch."""
    torch.save(net, folder / "module.pt")
    batch = {0: torch.export.Dim("batch")}
    for name, count, free in (("fixed", 1, None), ("free", 2, (batch,))):
        torch.onnx.export(
            net,
            (torch.zeros(count, 3, SIDE, SIDE),),
            str(folder / f"{name}.onnx"),
            dynamo=True,
            external_data=False,
            dynamic_shapes=free,
            verbose=False,
        )


class Worker:
    """A kind of run in a process of its own, which opens its model once."""

    def __init__(self, kind: str, folder: Path, split: Split, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.kind, self.split, self.options = kind, split, options
        self.batch_size = options.batch_size or default_batch_size((3, SIDE, SIDE))
        if kind in ("fixed", "free"):
            self.predictor = load(folder / f"{kind}.onnx")
        elif kind == "module":
            self.module = torch.load(folder / "module.pt", weights_only=False)
        else:
            self.module = load(folder / "fixed.onnx").module

    def __call__(self) -> Found:
        begun = time.perf_counter()
        robust, stages = self._ours() if self.kind in ("fixed", "free") else self._authors()
        return time.perf_counter() - begun, robust, stages

    def _ours(self) -> tuple[int, dict[str, float]]:
        name = "square" if self.options.black_box else "autoattack"
        rows = plan([name], norm="linf", eps=[self.options.eps])
        done = evaluate(self.predictor, self.split, rows, batch_size=self.batch_size)
        (outcome,) = done.outcomes
        assert outcome.unit is not None
        held = outcome.unit.attacked & ~outcome.unit.broken
        stages = dict(zip(outcome.unit.stages, outcome.unit.stage_seconds, strict=False))
        return int(held.sum()), stages or {"square": outcome.unit.seconds}

    def _authors(self) -> tuple[int, dict[str, float]]:
        x, y = torch.from_numpy(images_of(self.split, slice(None))), torch.from_numpy(self.split.labels)
        stages = {}
        for stage in ("square",) if self.options.black_box else ("apgd-ce", "apgd-t", "fab-t", "square"):
            begun = time.perf_counter()
            attack = AuthorsAutoAttack(self.module, norm="Linf", eps=self.options.eps, version="standard", seed=0)
            attack.verbose, attack.attacks_to_run = False, [stage]
            if len(x):
                _, found = attack.run_standard_evaluation(x, y, batch_size=self.batch_size)
                x, y = x[found == y], y[found == y]
            stages[stage] = time.perf_counter() - begun
        return len(x), stages


_worker: Callable[[], Found] | None = None


def _begin(kind: str, folder: Path, split: Split, options: argparse.Namespace) -> None:
    global _worker
    _worker = Worker(kind, folder, split, options)


def _again() -> Found:
    assert _worker is not None
    return _worker()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="that the network gets right")
    parser.add_argument("--eps", type=float, default=24 / 255)
    parser.add_argument("--batch-size", type=int, help="[that of `dgad attack`]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--black-box", action="store_true", help="Square alone")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    torch.set_num_threads(options.threads)
    net, test = trained(options.eps)
    with torch.no_grad():
        answers = net(torch.from_numpy(images_of(test, slice(None)))).argmax(1).numpy()
    right = np.flatnonzero(answers == test.labels)[: options.images]
    split = Split(test.base, test.index[right], test.labels[right])
    with tempfile.TemporaryDirectory() as name:
        folder, spawn = Path(name), get_context("spawn")
        write(net, folder)
        pools = {kind: ProcessPoolExecutor(1, spawn, _begin, (kind, folder, split, options)) for kind in kinds}
        found: dict[str, list[Found]] = {kind: [] for kind in kinds}
        for _ in range(options.repeats):
            for kind in kinds:
                found[kind].append(pools[kind].submit(_again).result())
                print(f"{kind}: {found[kind][-1][0]:.1f} s", file=sys.stderr, flush=True)
        for pool in pools.values():
            pool.shutdown()

    stages = list(found[kinds[-1]][0][2])
    print(f"{len(split)} images, eps {options.eps:.4f}, {options.threads} threads, {options.repeats} rounds, seconds")
    print(f"{'':12}" + "".join(f"{stage:>10}" for stage in (*stages, "total")) + f"{'robust':>8}")
    for kind, runs in found.items():
        cells = [*(median(run[2].get(stage, 0.0) for run in runs) for stage in stages), median(run[0] for run in runs)]
        print(f"{kind:12}" + "".join(f"{cell:10.2f}" for cell in cells) + f"{runs[0][1]:8}")
    for more, less in (("module", "fixed"), ("converted", "fixed"), ("fixed", "free")):
        if more in found and less in found:
            ratios = [one[0] / other[0] for one, other in zip(found[more], found[less], strict=True)]
            print(f"{more} over {less}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
