"""A search in bf16 beside one in float32: what a gradient costs, and what each attack breaks, image by image.

    python benchmarks/attacks/precision.py --passes resnet8 wrn-16-2 resnet18 mobilenetv2 vgg16
    python benchmarks/attacks/precision.py student.onnx --data-dir cifar10 --images 300 --attacks apgd-ce apgd-t

`--passes` times a forward pass with its backward pass on untrained networks: precisions in turns, medians. With a file,
each attack runs by itself on the first images that the file gets right, in both precisions; the file's own runtime
judges, and McNemar's p says whether the difference is more than chance. At the end what all of them have left in bf16
gets the ascent in float32 that closes AutoAttack's search. ONEDNN_MAX_CPU_ISA=AVX2 shows a processor without units for
bfloat16.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cli.flags.images import ImageFlags
from cli.flags.models import open_model
from cli.flags.preprocessing import interface_of
from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.models import build_model
from dgad_tk.strangers.number_text import parse_fraction
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.native import Victim, kept
from evaluators.attacks.result import SearchingAttack
from evaluators.attacks.spec import Budget, Estimator
from evaluators.target.ball import into_ball
from evaluators.target.estimators import to_estimator
from evaluators.target.judge import images_of, judge
from evaluators.target.precision import PRECISIONS, Precision, multiplies_bf16
from evaluators.verdict.paired import paired


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__}, {device.type}, threads {options.threads}, bf16 units: {multiplies_bf16(device)}")
    if options.passes:
        print("\n| network, batch | fp32 ms | bf16 ms | ratio |\n|---|---|---|---|")
    for name in options.passes:
        for batch in options.batches:
            ms = passes(name, batch, options.rounds)
            print(
                f"| {name}, {batch} | {ms['fp32']:.1f} | {ms['bf16']:.1f} | {ms['fp32'] / ms['bf16']:.2f} |", flush=True
            )
    if options.model is not None:
        outcomes(options)


def passes(name: str, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a gradient in each precision."""
    torch.manual_seed(0)
    predictor = predictor_of_module(build_model(name, in_channels=3, classes=10), (3, 32, 32), format="torchscript")
    victims = {each: Victim(to_estimator(predictor, search_precision=each)) for each in PRECISIONS}
    x = torch.rand(batch, 3, 32, 32).to(victims["fp32"].device, memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=x.device)
    seconds: dict[str, list[float]] = {each: [] for each in PRECISIONS}
    with kept():
        for number in range(rounds + 1):
            for each, victim in victims.items():
                begun = time.perf_counter()
                given = x.clone().requires_grad_()
                torch.autograd.grad(cross_entropy(victim.logits(given), labels).sum(), given)
                if x.is_cuda:
                    torch.cuda.synchronize()
                if number:  # the first one warms up
                    seconds[each].append(1000 * (time.perf_counter() - begun))
    return {each: median(found) for each, found in seconds.items()}


def outcomes(options: argparse.Namespace) -> None:
    """Every attack in both precisions, and what a last ascent in float32 finds, on images that the file gets right."""
    interface = interface_of(options.mean, options.std)
    flags = ImageFlags(dataset=options.dataset, data_dir=options.data_dir)
    predictor, images = open_model(options.model, flags, interface, only="test")
    part = images.splits["test"].subset(min(len(images.splits["test"]), options.images))
    x, labels = images_of(part, slice(None)), part.labels
    right = judge(predictor, x, options.batch_size).right(labels)
    x, labels, index = x[right], labels[right], part.index[right]
    print(f"\n{options.model}: {len(x)} of {len(right)} images are right; {options.norm} {options.eps:g}\n")
    print("| attack | broken fp32 | bf16 | only fp32 | only bf16 | p | s fp32 | s bf16 | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    left: dict[Precision, Any] = {each: np.ones(len(x), dtype=bool) for each in PRECISIONS}
    total = dict.fromkeys(PRECISIONS, 0.0)
    for name in options.attacks:
        held, seconds = {}, {}
        for each in PRECISIONS:
            held[each], seconds[each] = run(predictor, partial(_row, name), each, x, labels, index, options)
            left[each] &= held[each]
            total[each] += seconds[each]
        _line(name, held, seconds)
    _line("all of them", left, total)
    rest = left["bf16"].copy()
    left["bf16"][rest], more = run(predictor, _closing, "fp32", x[rest], labels[rest], index[rest], options)
    total["bf16"] += more
    _line("and closed in fp32", left, total)


def _row(name: str, estimator: Estimator, options: argparse.Namespace) -> SearchingAttack:
    spec, budget = ATTACKS[name], Budget(options.norm, options.eps, options.seed, options.batch_size)
    return spec.ready(name, estimator, budget, spec.params)


def _closing(estimator: Estimator, options: argparse.Namespace) -> SearchingAttack:
    common = {"norm": options.norm, "eps": options.eps, "seed": options.seed, "batch_size": options.batch_size}
    return APGD(estimator, targets=1, **common)


def _line(name: str, held: Mapping[Precision, Any], seconds: Mapping[Precision, float]) -> None:
    test = paired(held["fp32"], held["bf16"])
    broken = {each: int((~where).sum()) for each, where in held.items()}
    print(
        f"| {name} | {broken['fp32']} | {broken['bf16']} | {test.only_second} | {test.only_first} | {test.p:.2g} | "
        f"{seconds['fp32']:.1f} | {seconds['bf16']:.1f} | {seconds['fp32'] / seconds['bf16']:.2f} |",
        flush=True,
    )


def run(
    predictor: Predictor,
    build: Callable[[Estimator, argparse.Namespace], SearchingAttack],
    precision: Precision,
    x: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    options: argparse.Namespace,
) -> tuple[NDArray[np.bool_], float]:
    """Where the images hold, bool `(N,)`, and the seconds of the search."""
    estimator = to_estimator(predictor, search_precision=precision)
    attack = build(estimator, options)
    begun = time.perf_counter()
    found = attack.run(x, labels, index=index)
    seconds = time.perf_counter() - begun
    x_adv = into_ball(found.adversarials, x, options.norm, options.eps)
    return judge(predictor, x_adv, options.batch_size).right(labels), seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="a file to attack")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--attacks", nargs="+", default=["apgd-ce", "apgd-t"], help="rows that search in bf16")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", type=parse_fraction, default=8 / 255)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", nargs="*", default=[], help="networks whose gradients are timed")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 250])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
