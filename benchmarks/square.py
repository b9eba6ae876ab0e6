"""What the Square attack costs: ours, its authors' class, and its authors' class on the folded module.

All run on the same module, images, queries, batch size and threads, interleaved, so that a machine that slows down
slows all; the medians of the ratios within a round are what to quote. `limit` is what the queries alone cost: images
that were still robust times (queries + 1) forwards of the folded module at full batch. Without a model, a `resnet8`
that nobody has trained, with one class so far above the others that all images hold.

    python benchmarks/square.py --images 100 --queries 500 --repeats 7
    python benchmarks/square.py --model student.onnx --dataset cifar10 --data-dir data --norms linf
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.config.threat import Norm
from dgad_tk.data import load_dataset
from dgad_tk.models import build_model
from dgad_tk.strangers.number_text import parse_fraction
from evaluators.attacks.autoattack.square.square import Square
from evaluators.target.estimators import Counted, to_estimator
from exporters.formats import load

AUTHORS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
Measured = tuple[float, int]
"""Seconds, and images through the model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file; its module is attacked, not its runtime")
    parser.add_argument("--dataset", default="cifar10", help="where the images for --model come from")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--norms", default="linf,l2,l1")
    parser.add_argument("--eps", help="of all norms; else 8/255, 0.5 and 12")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, default=32, help="pixels a side, without --model and for an imagefolder")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = (3, arguments.size, arguments.size)
    if arguments.model is None:
        predictor = untrained(shape)
        x = np.random.default_rng(0).random((arguments.images, *shape), dtype=np.float32)
    else:
        predictor = load(arguments.model)
        size = arguments.size if arguments.dataset == "imagefolder" else None
        split = load_dataset(arguments.dataset, data_dir=arguments.data_dir, image_size=size).test
        x = split.subset(arguments.images).take(slice(None)) / np.float32(255)
    assert predictor.module is not None
    with torch.no_grad():
        y = predictor.module(torch.from_numpy(x)).argmax(dim=1).numpy()
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{len(x)} images {'x'.join(map(str, x.shape[1:]))}, {arguments.queries} queries, {arguments.repeats} rounds")
    columns = ("ours s", "authors s", "ratio", "folded s", "ratio", "time/limit", "passes/image", "authors")
    print(f"{'norm':<6}" + "".join(f"{column:>13}" for column in columns))
    for norm in arguments.norms.split(","):
        eps = parse_fraction(arguments.eps) if arguments.eps else {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}[norm]
        compare(predictor, x, y, norm, eps, arguments)


def untrained(shape: tuple[int, int, int]) -> Predictor:
    net = build_model("resnet8", in_channels=shape[0], classes=10)
    with torch.no_grad():  # statistics of its own, so that folding has something to fold
        net.train()(torch.rand(64, *shape))
        *_, last = (module for module in net.modules() if isinstance(module, nn.Linear))
        last.bias[0] += 30
    return predictor_of_module(net, shape, format="torchscript")


def compare(
    predictor: Predictor,
    x: np.ndarray,
    y: np.ndarray,
    norm: Norm,
    eps: float,
    arguments: argparse.Namespace,
) -> None:
    """One row of the table."""
    queries, batch_size = arguments.queries, arguments.batch_size
    assert predictor.module is not None
    plain, quick = predictor.module if predictor.network is None else predictor.network, predictor.module
    images, labels = torch.from_numpy(x), torch.from_numpy(y)

    def ours() -> Measured:
        counted = Counted(quick)
        attack = Square(
            to_estimator(torch_only(predictor), module=counted),
            norm=norm,
            eps=eps,
            queries=queries,
            batch_size=batch_size,
        )
        return timed(lambda: attack.generate(x, y)), counted.forwards

    def theirs(module: nn.Module) -> Measured:
        counted = Counted(module)
        attack = SquareAttack(counted, norm=AUTHORS[norm], eps=eps, n_queries=queries, device=torch.device("cpu"))

        def run() -> None:
            for start in range(0, len(x), batch_size):
                attack.perturb(images[start : start + batch_size], labels[start : start + batch_size])

        return timed(run), counted.forwards

    full = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]

    def per_image() -> float:
        return min(timed(lambda: forward(quick, full)) for _ in range(5)) / len(full)

    for warm_up in (ours, lambda: theirs(plain), per_image):
        warm_up()
    rounds = [(ours(), theirs(plain), theirs(quick), per_image()) for _ in range(arguments.repeats)]

    def median(value: Callable[[tuple[Measured, Measured, Measured, float]], float]) -> float:
        return statistics.median(value(each) for each in rounds)

    (_, passes), (_, authors_passes) = rounds[0][:2]
    cells = [
        f"{median(lambda r: r[0][0]):.2f}",
        f"{median(lambda r: r[1][0]):.2f}",
        f"{median(lambda r: r[1][0] / r[0][0]):.2f}",
        f"{median(lambda r: r[2][0]):.2f}",
        f"{median(lambda r: r[2][0] / r[0][0]):.2f}",
        f"{median(lambda r: r[0][0] / (authors_passes * r[3])):.2f}",
        f"{passes / len(x):.0f}",
        f"{authors_passes / len(x):.0f}",
    ]
    print(f"{norm:<6}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def torch_only(predictor: Predictor) -> Predictor:
    """The predictor as one whose runtime is its module."""
    module = predictor.module if predictor.network is None else predictor.network
    assert module is not None
    return predictor_of_module(module, predictor.input_shape, format="torchscript")


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@torch.no_grad()
def forward(module: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = module(x)
    return logits


if __name__ == "__main__":
    main()
