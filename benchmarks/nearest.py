"""Minimum-norm attacks: ours, foolbox's and adversarial-library's on the same images and steps, in every norm.

    python benchmarks/nearest.py best.safetensors --images 200
    python benchmarks/nearest.py student.onnx --norms linf,l0 --steps 100 --adv-lib ../adversarial-library

All search on the file's differentiable module and are judged by the same network: an image that it still gets right
counts as infinitely far. So the medians are over all images that were right when clean. Passes are counted per image.
foolbox is of the extra `dev`; adversarial-library (`pip install adv-lib`, or `--adv-lib FOLDER` with its sources) is
left out where it is not there. Its logger `visdom` is not needed, and stands in as an empty module.
"""

import argparse
import platform
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import foolbox
import numpy as np
import torch
from torch import Tensor, nn

from cli.flags.images import ImageFlags
from cli.flags.models import open_model
from dgad_tk.config.threat import Norm
from evaluators.attacks.native import pixel_rows
from evaluators.attacks.nearest.ddn import DecoupledDirectionNorm
from evaluators.attacks.nearest.fmn import FastMinimumNorm
from evaluators.attacks.nearest.lengths import length
from evaluators.attacks.nearest.sigma_zero import SigmaZero
from evaluators.engine.evaluate import default_batch_size
from evaluators.target.estimators import Counted, PredictorClassifier
from evaluators.target.judge import images_of, judge

ORDERS: dict[str, float] = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}
FOOLBOX = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack", "l0": "L0FMNAttack"}
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What one attack found: distances, infinite where it failed `(N,)`, passes of an image, and seconds."""

    distance: np.ndarray
    forwards: float
    backwards: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=200, help="the first so many of the test images' fixed order")
    parser.add_argument("--norms", default="linf,l2,l1,l0")
    parser.add_argument("--attacks", default="fmn,ddn,sigma-zero")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--adv-lib", type=Path, help="a folder with the sources of adversarial-library")
    options = parser.parse_args()
    torch.manual_seed(0)
    predictor, dataset = open_model(options.model, ImageFlags(options.dataset, options.data_dir))
    assert predictor.module is not None
    size = options.batch_size or default_batch_size(predictor.input_shape)
    part = dataset.test.subset(options.images)
    images = images_of(part, slice(None))
    right = judge(predictor, images, size).right(part.labels)
    x, y = torch.from_numpy(images[right]), torch.from_numpy(part.labels[right])
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{options.model.name}: {len(x)} of {len(right)} images are right when clean; {options.steps} steps")
    header = f"{'attack':22} {'median':>9} {'ours':>7} {'mean':>9} {'broke':>6} {'nearer':>7} {'passes':>12} {'s':>6}"
    for norm in options.norms.split(","):
        for attack in options.attacks.split(","):
            runs = dict(runs_of(attack, norm, options, predictor))
            if len(runs) < 2:
                continue
            print(f"\n{attack} {norm}\n{header}")
            ours: Outcome | None = None
            for name, run in runs.items():
                found = measured(predictor.module, run, x, y, norm, size)
                ours = ours or found
                print(line(name, found, ours), flush=True)


def runs_of(attack: str, norm: Norm, options: argparse.Namespace, predictor: object) -> Iterator[tuple[str, Run]]:
    """The implementations of an attack in a norm, ours first."""
    steps = options.steps
    own = {"fmn": FastMinimumNorm, "ddn": DecoupledDirectionNorm, "sigma-zero": SigmaZero}[attack]
    if attack != "fmn" and norm != {"ddn": "l2", "sigma-zero": "l0"}[attack]:
        return

    def ours(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        more = {"norm": norm} if attack == "fmn" else {}
        estimator = PredictorClassifier(predictor, module=module)
        return torch.from_numpy(own(estimator, steps=steps, batch_size=len(x), **more).generate(x.numpy(), y.numpy()))

    yield "ours", ours
    if attack in ("fmn", "ddn"):
        name = FOOLBOX[norm] if attack == "fmn" else "DDNAttack"

        def theirs(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            peer = getattr(foolbox.attacks, name)(steps=steps)
            return peer.run(foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu"), x, y)

        yield f"foolbox {name}", theirs
    if options.adv_lib:
        sys.path.insert(0, str(options.adv_lib))
    try:
        sys.modules.setdefault("visdom", types.ModuleType("visdom"))
        from adv_lib.attacks import ddn, fmn, sigma_zero
    except ImportError:
        return
    peers: dict[str, Run] = {
        "fmn": lambda module, x, y: fmn(module, x, y, norm=ORDERS[norm], steps=steps),
        "ddn": lambda module, x, y: ddn(module, x, y, steps=steps, levels=None),
        "sigma-zero": lambda module, x, y: sigma_zero(module, x, y, num_steps=steps),
    }
    yield "adv-lib", peers[attack]


def measured(module: nn.Module, run: Run, x: Tensor, y: Tensor, norm: Norm, size: int) -> Outcome:
    counted, begun = Counted(module).eval(), time.perf_counter()
    batches = zip(x.split(size), y.split(size), strict=True)
    found = torch.cat([run(counted, *batch).detach() for batch in batches])
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        broken = torch.cat([module(part) for part in found.split(size)]).argmax(dim=1) != y
    distance = length(pixel_rows(found).double() - pixel_rows(x).double(), norm)
    away = torch.where(broken, distance, torch.inf).numpy()
    return Outcome(away, counted.forwards / len(x), counted.backwards / len(x), seconds)


def line(name: str, found: Outcome, ours: Outcome) -> str:
    """A row: medians, ours as a multiple of theirs, the share of images on which theirs is nearer than ours."""
    median, own = float(np.median(found.distance)), float(np.median(ours.distance))
    both = np.isfinite(found.distance) & np.isfinite(ours.distance)
    mean = float(found.distance[both].mean())
    broke, nearer = np.isfinite(found.distance).mean(), (found.distance < ours.distance * (1 - 1e-6)).mean()
    passes = f"{found.forwards:.0f} + {found.backwards:.0f}"
    return (
        f"{name:22} {median:9.5f} {own / median:7.4f} {mean:9.5f} {broke:6.1%} {nearer:7.1%} {passes:>12} "
        f"{found.seconds:6.1f}"
    )


if __name__ == "__main__":
    main()
