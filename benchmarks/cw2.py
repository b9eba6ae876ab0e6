"""Carlini & Wagner's L2 attack: ours, ART's and foolbox's on the same images, model, iterations and threads.

ART's gains or loses by batch size from model to model, so it runs at several and its best is taken. Interleaved, so
that a machine that slows down slows all; the median of the ratios within a round is what to quote. Adversarial images
are judged by the same network for all three, and distances are medians over the images that all of them broke.

    python benchmarks/cw2.py
    python benchmarks/cw2.py --model student.onnx --dataset cifar10 --data-dir data --images 64 --max-iter 100
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import CarliniL2Method
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import nn

from dgad_tk.data import load_dataset
from dgad_tk.models import build_model
from evaluators.attacks.cw2 import CarliniWagnerL2
from exporters.formats import load

Attack = Callable[[], NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file; a resnet8 trained for seconds if left out")
    parser.add_argument("--dataset", help="of the images; patterns in noise if left out")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--max-iter", type=int, default=20)
    parser.add_argument("--search-steps", type=int, default=1)
    parser.add_argument("--initial-const", type=float, default=10.0)
    parser.add_argument("--abort-early", action="store_true", help="in ours and foolbox's; ART's has none")
    parser.add_argument("--art-batch-sizes", default="1,8,32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    module, shape = victim(arguments.model)
    x, y = correct_images(module, arguments)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{len(x)} images {shape}, {arguments.max_iter} iterations, {arguments.search_steps} search steps")
    attacks = peers(module, x, y, arguments)
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(arguments.repeats):
        for name, attack in attacks.items():
            begun = time.perf_counter()
            found[name] = attack()
            seconds[name].append(time.perf_counter() - begun)
    report(module, x, y, seconds, found)


def victim(path: Path | None) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network, not folded, or a file's twin, and the shape of its images."""
    if path is not None:
        predictor = load(path)
        module = predictor.network or predictor.module
        if module is None:
            raise SystemExit(f"{path} has no gradients")
        return module, predictor.input_shape
    model = build_model("resnet8", in_channels=3, classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(30):
        x, y = patterns(64, seed=1 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval().requires_grad_(False), (3, 32, 32)


def patterns(n: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ten faint patterns in noise, which a network learns in seconds and an attack breaks."""
    means = np.random.default_rng(0).uniform(0.4, 0.6, (10, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n)
    return np.clip(means[labels] + random.normal(0, 0.1, (n, 3, 32, 32)), 0, 1).astype(np.float32), labels


def correct_images(module: nn.Module, arguments: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images that the network gets right, and their labels."""
    wanted = 4 * arguments.images
    if arguments.dataset is None:
        x, y = patterns(wanted, seed=0)
    else:
        split = load_dataset(arguments.dataset, data_dir=arguments.data_dir).test
        positions = np.random.default_rng(0).permutation(len(split))[:wanted]
        x = np.concatenate([split.take(slice(each, each + 1)) for each in positions.tolist()]) / np.float32(255)
        y = split.labels[positions]
    right = np.flatnonzero(predictions(module, x) == y)[: arguments.images]
    return x[right], y[right]


def predictions(module: nn.Module, x: NDArray[np.float32]) -> NDArray[np.int64]:
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(x)).argmax(1).numpy())


def peers(
    module: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], arguments: argparse.Namespace
) -> dict[str, Attack]:
    """Every attack by name, ready to run."""
    import foolbox

    steps, iterations, const = arguments.search_steps, arguments.max_iter, arguments.initial_const
    shared = {"binary_search_steps": steps, "initial_const": const, "confidence": 0.01}
    classes = int(module(torch.from_numpy(x[:1])).shape[1])
    estimator = PyTorchClassifier(
        model=module, loss=nn.CrossEntropyLoss(), input_shape=x.shape[1:], nb_classes=classes, clip_values=(0, 1)
    )
    device = estimator.device
    images, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    theirs = foolbox.PyTorchModel(module, bounds=(0, 1), device=device)
    abort = arguments.abort_early
    reference = foolbox.attacks.L2CarliniWagnerAttack(steps=iterations, stepsize=0.01, abort_early=abort, **shared)
    ours = CarliniWagnerL2(estimator, max_iter=iterations, abort_early=abort, **shared)
    ours.victim.logits(images)  # the convolutions make up their mind at their first call

    def art(batch_size: int) -> Attack:
        attack = CarliniL2Method(estimator, max_iter=iterations, batch_size=batch_size, verbose=False, **shared)
        return lambda: attack.generate(x, y)

    return {
        "ours": lambda: ours.generate(x, y),
        "foolbox": lambda: np.asarray(reference(theirs, images, labels, epsilons=None)[0].cpu().numpy()),
        **{f"ART, batch {size}": art(size) for size in map(int, arguments.art_batch_sizes.split(","))},
    }


def report(
    module: nn.Module,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    seconds: dict[str, list[float]],
    found: dict[str, NDArray[np.float32]],
) -> None:
    """A row for each attack."""
    broken = {name: predictions(module, images) != y for name, images in found.items()}
    distance = {name: np.sqrt(np.square(images - x, dtype=np.float64).sum((1, 2, 3))) for name, images in found.items()}
    # foolbox hands back a black image where it found nothing.
    for name, images in found.items():
        broken[name] &= images.any(axis=(1, 2, 3))
    shared = np.logical_and.reduce(list(broken.values()))
    print(f"{'attack':<16}{'s':>8}{'x ours':>8}{'success':>9}{'median L2':>11}")
    for name, times in seconds.items():
        ratio = statistics.median(their / our for their, our in zip(times, seconds["ours"], strict=True))
        median = np.median(distance[name][shared]) if shared.any() else np.nan
        print(f"{name:<16}{statistics.median(times):>8.2f}{ratio:>8.1f}{broken[name].mean():>9.1%}{median:>11.4f}")
    best = min((name for name in seconds if name.startswith("ART")), key=lambda name: statistics.median(seconds[name]))
    print(f"best of ART's: {best}; distances over the {shared.sum()} images that all broke")


if __name__ == "__main__":
    main()
