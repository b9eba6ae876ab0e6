"""Whole AutoAttack, ours beside its authors' package, on the same images, weights, threads and batch.

    python benchmarks/autoattack.py student.onnx --source runs/cifar/best.safetensors --data-dir cifar10 --images 100

`ours` attacks the exported file, if one is given besides the source, and the torch module; the authors' code runs on
the module as it is and on the module with BatchNorm folded. The limit is the passes that our attack made (an image
leaves when it is broken) times what a pass costs per image at full batch: forward passes alone by the file's runtime,
forward and backward by the folded module. Each kind of run has a process of its own, since ours changes how memory is
given back; runs are interleaved and medians are printed.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import AutoAttack as ArtAutoAttack
from pyautoattack import AutoAttack as AuthorsAutoAttack

from cli.flags.images import ImageFlags
from cli.flags.models import open_model
from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.models import build_model
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.native import Victim, kept
from evaluators.target.estimators import Counted, to_estimator
from evaluators.target.judge import images_of, judge

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


class Ours:
    """Our ensemble on a predictor, with its passes counted."""

    def __init__(self, predictor: Predictor, eps: float, batch_size: int) -> None:
        self.predictor, self.eps, self.batch_size = predictor, eps, batch_size
        self.forwards = self.backwards = 0
        self.stages: dict[str, float] = {}

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        assert self.predictor.module is not None
        counted, asked = Counted(self.predictor.module), [0]

        def counting(ask: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
            def counts(images: np.ndarray) -> np.ndarray:
                asked[0] += len(images)
                return ask(images)

            return counts

        predict, search = counting(self.predictor.predict), self.predictor.search
        attack = AutoAttack(
            to_estimator(
                replace(self.predictor, predict=predict, search=counting(search) if search else None), module=counted
            ),
            eps=self.eps,
            batch_size=self.batch_size,
        )
        found = attack.run(x, y)
        self.forwards = counted.forwards - counted.backwards + asked[0]
        self.backwards = counted.backwards
        self.stages = dict(zip(STAGES, found.stage_seconds, strict=False))
        return found.broken_by < 0


class Authors:
    """The authors' package on a module, stage by stage, each on what the stage before has left, as it does itself."""

    def __init__(self, module: torch.nn.Module, eps: float, batch_size: int) -> None:
        self.module, self.eps, self.batch_size = module, eps, batch_size
        self.stages: dict[str, float] = {}

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        images, labels = torch.from_numpy(x), torch.from_numpy(y)
        left = torch.arange(len(x))
        for stage in STAGES:
            attack = AuthorsAutoAttack(self.module, norm="Linf", eps=self.eps, version="standard", seed=0)
            attack.verbose, attack.attacks_to_run = False, [stage]
            begun = time.perf_counter()
            if len(left):
                _, found = attack.run_standard_evaluation(images[left], labels[left], batch_size=self.batch_size)
                left = left[found == labels[left]]
            self.stages[stage] = time.perf_counter() - begun
        robust = np.zeros(len(x), dtype=bool)
        robust[left.numpy()] = True
        return robust


class Arts:
    """ART's attack of that name: DeepFool in place of FAB-T, no targeted APGD, Square five times over."""

    def __init__(self, predictor: Predictor, eps: float, batch_size: int) -> None:
        self.predictor, self.eps, self.batch_size = predictor, eps, batch_size
        self.stages: dict[str, float] = {}

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        estimator = to_estimator(self.predictor)
        attack = ArtAutoAttack(estimator, eps=self.eps, eps_step=self.eps / 4, batch_size=self.batch_size)
        x_adv = attack.generate(x, np.eye(self.predictor.classes, dtype=np.float32)[y])
        return self.predictor.predict(x_adv).argmax(1) == y


def costs(predictor: Predictor, images: np.ndarray) -> tuple[float, float]:
    """Seconds of an image in a forward pass by the runtime, and in one by the module with its backward pass."""
    victim = Victim(to_estimator(predictor))
    x, labels = torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64)

    def backward() -> None:
        given = x.clone().requires_grad_()
        torch.autograd.grad(cross_entropy(victim.logits(given), labels).sum(), given)

    return tuple(_seconds(call) / len(images) for call in (lambda: predictor.predict(images), backward))


def _seconds(call: Callable[[], object]) -> float:
    """Median of three, after one to warm up."""
    found = []
    for _ in range(4):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return median(found[1:])


KINDS = ("ours, file", "ours, module", "authors'", "authors', folded")


class Worker:
    """A kind of run in a process of its own, which opens the models once."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        source, self.x, self.y = opened(options)
        common: tuple[float, int] = (options.eps, options.batch_size)
        self.run: Any
        if kind.startswith("authors"):
            assert source.module is not None
            assert source.network is not None
            self.run = Authors(source.module if "folded" in kind else source.network, *common)
        elif kind == "art":
            self.run = Arts(source, *common)
        else:
            file = "file" in kind
            self.run = Ours(
                open_model(options.model, ImageFlags(data_dir=options.data_dir))[0] if file else source, *common
            )

    def __call__(self) -> dict[str, Any]:
        begun = time.perf_counter()
        held = self.run(self.x, self.y)
        found = {"seconds": time.perf_counter() - begun, "robust": int(held.sum()), "stages": dict(self.run.stages)}
        if isinstance(self.run, Ours):
            size = min(self.run.batch_size, 500)
            with kept():
                forward, backward = costs(self.run.predictor, np.resize(self.x, (size, *self.x.shape[1:])))
            found["limit"] = self.run.forwards * forward + self.run.backwards * backward
        return found


_worker: Worker | None = None


def _begin(kind: str, options: argparse.Namespace) -> None:
    global _worker
    _worker = Worker(kind, options)


def _again() -> dict[str, Any]:
    assert _worker is not None
    return _worker()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="an exported file; left out, only modules are attacked")
    parser.add_argument("--source", type=Path, help="the .safetensors it came from")
    parser.add_argument("--random", help="row of MODELS with random weights on 32x32 noise, in place of both")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which runs, where some take too long")
    parser.add_argument("--art", action="store_true", help="time ART's own once, which is other and more work")
    options = parser.parse_args()
    kinds = [kind for kind in options.kinds if options.model or "file" not in kind] + (["art"] if options.art else [])
    spawn = get_context("spawn")
    pools = {kind: ProcessPoolExecutor(1, spawn, _begin, (kind, options)) for kind in kinds}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for repeat in range(options.repeats):
        for kind in kinds:
            if kind != "art" or repeat == 0:
                found[kind].append(pools[kind].submit(_again).result())
    for pool in pools.values():
        pool.shutdown()

    print(f"{options.images} images, eps {options.eps:.4f}, batch {options.batch_size}, {options.threads} threads")
    print(f"{'':18}" + "".join(f"{stage:>10}" for stage in STAGES) + f"{'total':>10}{'limit':>10}{'robust':>8}")
    for kind, runs in found.items():
        cells = [median(each["stages"].get(stage, 0.0) for each in runs) for stage in STAGES]
        total = median(each["seconds"] for each in runs)
        limit = f"{median(each['seconds'] / each['limit'] for each in runs):.2f}x" if "limit" in runs[0] else ""
        numbers = "".join(f"{cell:10.2f}" for cell in (*cells, total))
        print(f"{kind:18}{numbers}{limit:>10}{runs[0]['robust']:8}")
    for ours in [kind for kind in kinds if kind.startswith("ours")]:
        for theirs in [kind for kind in kinds if kind.startswith("authors")]:
            pairs = zip(found[ours], found[theirs], strict=True)
            ratios = [their["seconds"] / our["seconds"] for our, their in pairs]
            print(f"{theirs} over {ours}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def opened(options: argparse.Namespace) -> tuple[Predictor, np.ndarray, np.ndarray]:
    """The module, and the first images that it gets right."""
    if options.random:
        torch.manual_seed(0)
        module = build_model(options.random, in_channels=3, classes=10)
        source = predictor_of_module(module, (3, 32, 32), format="torchscript")
        x = np.random.default_rng(0).random((options.images, 3, 32, 32), dtype=np.float32)
        return source, x, source.predict(x).argmax(1)
    if options.source is None:
        raise SystemExit("give --source or --random")
    source, images = open_model(options.source, ImageFlags(data_dir=options.data_dir))
    part = images.test.subset(min(len(images.test), 8 * options.images))
    x, labels = images_of(part, slice(None)), part.labels
    right = judge(source, x, options.batch_size)[0] == labels
    return source, x[right][: options.images], labels[right][: options.images]


if __name__ == "__main__":
    main()
