"""Whole AutoAttack, ours beside its authors' package, on the same images, weights, threads and batch.

    python benchmarks/autoattack.py student.onnx --source runs/cifar/best.safetensors --data-dir cifar10 --images 100

`ours` attacks the exported file, if one is given besides the source, and the torch module; the authors' code runs on
the module as it is and on the module with BatchNorm folded. The limit is the passes that our attack made (an image
leaves when it is broken) times what a pass costs per image at full batch: forward passes alone by the file's runtime,
forward and backward by the folded module. Runs are interleaved; medians are printed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import AutoAttack as ArtAutoAttack
from pyautoattack import AutoAttack as AuthorsAutoAttack

from cli.models import open_model
from dgad_tk.fold import folded
from dgad_tk.models import build_model
from dgad_tk.predictor import Predictor, predictor_of_module
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.estimators import Counted, searchable, to_estimator
from evaluators.judge import images_of, judge
from evaluators.survey import measure

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


class Ours:
    """Our ensemble on a predictor, with its passes counted."""

    def __init__(self, predictor: Predictor, eps: float, batch_size: int) -> None:
        self.predictor, self.eps, self.batch_size = predictor, eps, batch_size
        self.forwards = self.backwards = 0
        self.stages: dict[str, float] = {}

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        counted, asked = Counted(searchable(self.predictor)), [0]

        def predict(images: np.ndarray) -> np.ndarray:
            asked[0] += len(images)
            return self.predictor.predict(images)

        attack = AutoAttack(
            to_estimator(replace(self.predictor, predict=predict), module=counted),
            eps=self.eps,
            batch_size=self.batch_size,
        )
        attack.generate(x, y)
        self.forwards = counted.forwards - counted.backwards + asked[0]
        self.backwards = counted.backwards
        self.stages = dict(zip(STAGES, attack.stage_seconds, strict=False))
        return attack.broken_by < 0


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
    parser.add_argument("--art", action="store_true", help="time ART's own once, which is other and more work")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source, x, labels = _opened(options)
    exported = open_model(options.model, None, options.data_dir, None)[0] if options.model else None
    assert source.module is not None

    right = judge(source, x, options.batch_size)[0] == labels
    x, y = x[right][: options.images], labels[right][: options.images]
    common: tuple[float, int] = (options.eps, options.batch_size)
    runs: dict[str, Any] = {} if exported is None else {"ours, file": Ours(exported, *common)}
    runs |= {
        "ours, module": Ours(source, *common),
        "authors'": Authors(source.module, *common),
        "authors', folded": Authors(folded(source.module), *common),
    }
    print(f"{len(x)} images, eps {options.eps:.4f}, batch {options.batch_size}, {torch.get_num_threads()} threads")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    robust: dict[str, int] = {}
    for _ in range(options.repeats):
        for name, run in runs.items():
            took, held = _timed(run, x, y)
            seconds[name].append(took)
            stages[name].append(dict(run.stages))
            robust[name] = int(held.sum())
    print(f"{'':18}" + "".join(f"{stage:>10}" for stage in STAGES) + f"{'total':>10}{'limit':>10}{'robust':>8}")
    for name, run in runs.items():
        cells = [median(each.get(stage, 0.0) for each in stages[name]) for stage in STAGES]
        limit = ""
        if isinstance(run, Ours):
            costs = measure(run.predictor, np.resize(x, (min(options.batch_size, 500), *x.shape[1:])))
            assert costs.backward is not None
            size = min(options.batch_size, 500)
            ideal = run.forwards * costs.forward.per_image(size) + run.backwards * costs.backward.per_image(size)
            limit = f"{median(seconds[name]) / ideal:.2f}x"
        print(
            f"{name:18}" + "".join(f"{cell:10.2f}" for cell in cells) + f"{median(seconds[name]):10.2f}{limit:>10}"
            f"{robust[name]:8}"
        )
    for ours in [name for name in runs if name.startswith("ours")]:
        for theirs in [name for name in runs if name.startswith("authors")]:
            ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
            print(f"{theirs} over {ours}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if options.art:
        took, held = _timed(Arts(source, *common), x, y)
        print(f"ART's AutoAttack, other work: {took:.1f} s, {int(held.sum())} robust")


def _opened(options: argparse.Namespace) -> tuple[Predictor, np.ndarray, np.ndarray]:
    if options.random:
        torch.manual_seed(0)
        module = build_model(options.random, in_channels=3, classes=10)
        predictor = predictor_of_module(module, (3, 32, 32), format="torchscript")
        x = np.random.default_rng(0).random((options.images, 3, 32, 32), dtype=np.float32)
        return predictor, x, predictor.predict(x).argmax(1)
    if options.source is None:
        raise SystemExit("give --source or --random")
    predictor, images = open_model(options.source, None, options.data_dir, None)
    part = images.test.subset(min(len(images.test), 4 * options.images))
    return predictor, images_of(part, slice(None)), part.labels


def _timed(run: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    begun = time.perf_counter()
    held = run(x, y)
    return time.perf_counter() - begun, held


if __name__ == "__main__":
    main()
