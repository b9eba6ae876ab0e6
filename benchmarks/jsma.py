"""JSMA: ours and ART's on the same images, model, targets and threads.

ART's runs at several batch sizes and its best is taken. Interleaved, so that a machine that slows down slows both; the
median of the ratios within a round is what to quote. The share of equal images says that it is the same work.

    python benchmarks/jsma.py
    python benchmarks/jsma.py --model student.onnx --dataset cifar10 --data-dir data --images 64
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import SaliencyMapMethod
from art.estimators.classification import PyTorchClassifier
from cw2 import Attack, correct_images, predictions, victim
from numpy.typing import NDArray
from torch import nn

from evaluators.attacks.jsma import SaliencyMap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file; a resnet8 trained for seconds if left out")
    parser.add_argument("--dataset", help="of the images; patterns in noise if left out")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--theta", type=float, default=1.0)
    parser.add_argument("--gamma", type=float, default=0.1)
    parser.add_argument("--art-batch-sizes", default="1,8,32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    module, _ = victim(arguments.model)
    x, y = correct_images(module, arguments)
    with torch.no_grad():
        targets = module(torch.from_numpy(x)).argsort(dim=1)[:, -2].numpy()
    estimator = PyTorchClassifier(
        model=module, loss=nn.CrossEntropyLoss(), input_shape=x.shape[1:], nb_classes=10, clip_values=(0, 1)
    )
    shared = {"theta": arguments.theta, "gamma": arguments.gamma}
    ours = SaliencyMap(estimator, targeted=True, **shared)
    ours.victim.logits(
        torch.from_numpy(x).to(estimator.device)
    )  # the convolutions make up their mind at the first call

    def art(batch_size: int) -> Attack:
        attack = SaliencyMapMethod(estimator, batch_size=batch_size, verbose=False, **shared)
        return lambda: attack.generate(x, targets)

    attacks: dict[str, Attack] = {"ours": lambda: ours.generate(x, targets)}
    attacks |= {f"ART, batch {size}": art(size) for size in map(int, arguments.art_batch_sizes.split(","))}
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(arguments.repeats):
        for name, attack in attacks.items():
            begun = time.perf_counter()
            found[name] = attack()
            seconds[name].append(time.perf_counter() - begun)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{len(x)} images {x.shape[1:]}, theta {arguments.theta}, gamma {arguments.gamma}")
    print(f"{'attack':<16}{'s':>8}{'x ours':>8}{'success':>9}{'median L2':>11}{'as ours':>9}")
    for name, times in seconds.items():
        ratio = statistics.median(their / our for their, our in zip(times, seconds["ours"], strict=True))
        distance = np.median(np.sqrt(np.square(found[name] - x, dtype=np.float64).sum((1, 2, 3))))
        success = (predictions(module, found[name]) != y).mean()
        equal = (found[name] == found["ours"]).all(axis=(1, 2, 3)).mean()
        print(f"{name:<16}{statistics.median(times):>8.2f}{ratio:>8.1f}{success:>9.1%}{distance:>11.4f}{equal:>9.1%}")


if __name__ == "__main__":
    main()
