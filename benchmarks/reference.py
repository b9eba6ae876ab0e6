"""Our AutoAttack and its authors' package on the same images, one by one.

    python benchmarks/reference.py student.onnx --images 500 --seeds 0 1 2
    python benchmarks/reference.py best.safetensors --norm l2 --eps 1/2 --images 500

Each stage of the package (`pip install pyautoattack`) is a run of its own on what the stages before have left, which is
what the package does by itself. It attacks the differentiable module and judges by it; ours is judged by the file's
runtime. The package draws batch by batch, so its outcome depends on the batch size. Prints the images that are robust
after each stage, those that only one of the two broke, and McNemar's p.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pyautoattack import AutoAttack as Package

from cli.flags.images import ImageFlags
from cli.flags.models import default_eps, open_model
from cli.flags.values import radii_of
from dgad_tk.config.threat import Norm
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.stages import Stage, ensemble
from evaluators.engine.evaluate import default_batch_size
from evaluators.target.estimators import to_estimator
from evaluators.target.judge import images_of, judge
from evaluators.verdict.paired import paired

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class Outcome:
    """The number of the stage that broke each image, -1 for none; and the seconds of all stages."""

    broken_by: np.ndarray
    seconds: float


def ours(estimator: object, x: np.ndarray, y: np.ndarray, options: argparse.Namespace, seed: int) -> Outcome:
    begun = time.perf_counter()
    attack = AutoAttack(estimator, norm=options.norm, eps=options.eps, seed=seed, batch_size=options.batch_size)
    return Outcome(attack.run(x, y).broken_by, time.perf_counter() - begun)


def theirs(
    module: torch.nn.Module, stages: list[Stage], x: np.ndarray, y: np.ndarray, options: argparse.Namespace, seed: int
) -> Outcome:
    device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
    images, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    broken_by, left = np.full(len(x), -1), torch.arange(len(x))
    begun = time.perf_counter()
    for number, stage in enumerate(stages):
        if len(left) == 0:
            break
        package = Package(module, device=device, eps=options.eps, norm=NORMS[options.norm], seed=seed)
        package.verbose, package.attacks_to_run = False, [stage.name]
        package.apgd.n_restarts = package.fab.n_restarts = stage.restarts
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = stage.targets
        _, predicted = package.run_standard_evaluation(images[left], labels[left], batch_size=options.batch_size)
        broken = (predicted != labels[left]).cpu()
        broken_by[left[broken].numpy()] = number
        left = left[~broken]
    return Outcome(broken_by, time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=500, help="the first so many of the test images' fixed order")
    parser.add_argument("--norm", choices=NORMS, default="linf")
    parser.add_argument("--eps", help="[what the model was trained for]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    norm: Norm = options.norm
    predictor, dataset = open_model(options.model, ImageFlags(options.dataset, options.data_dir))
    radii = radii_of(options.eps, norm)
    options.eps = radii[0] if radii else default_eps(predictor.artifact, dataset, norm)
    options.batch_size = options.batch_size or default_batch_size(predictor.input_shape)
    part = dataset.test.subset(options.images)
    x = images_of(part, slice(None))
    right = np.flatnonzero(judge(predictor, x, options.batch_size).right(part.labels))
    assert predictor.module is not None
    side = min(predictor.input_shape[1:])
    stages, notes = ensemble("standard", classes=predictor.classes, norm=norm, side=side)
    print("\n".join([f"{norm} {options.eps:g}: {len(right)} of {len(x)} images are right when clean", *notes]))
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for seed in options.seeds:
        run = (x[right], part.labels[right], options, seed)
        mine, other = ours(to_estimator(predictor), *run), theirs(predictor.module, stages, *run)
        for number, stage in enumerate(stages):
            after = [int(((each.broken_by < 0) | (each.broken_by > number)).sum()) for each in (mine, other)]
            print(f"seed {seed} after {stage.name:8} ours {after[0]:5} authors' {after[1]:5}")
        robust = mine.broken_by < 0, other.broken_by < 0
        held.append(robust)
        for who, where in (("ours", robust[1] & ~robust[0]), ("the authors'", robust[0] & ~robust[1])):
            print(f"seed {seed} only {who} broke {part.index[right[where]].tolist()}")
        seconds = f"{mine.seconds:.1f} s and {other.seconds:.1f} s ({other.seconds / mine.seconds:.2f}x)"
        print(f"seed {seed} took {seconds}, McNemar p {paired(*robust).p:.3f}")
    # Seeds of one image are not independent, which makes this p smaller than it should be: on the safe side.
    every = paired(*(np.concatenate(each) for each in zip(*held, strict=True)))
    difference = (every.only_first - every.only_second) / (len(x) * len(held))
    print(f"all seeds: ours minus theirs {difference:+.2%} of the images, McNemar p {every.p:.3f}")


if __name__ == "__main__":
    main()
