"""What a gradient to the images costs through the twin of an ONNX file, against the module that it came from.

Four columns, interleaved so that a machine that slows down slows all: the module as it is in eval mode, the module
with BatchNorm folded and weights frozen (`dgad_tk.ascent.folded`, what our own attacks on torch models run), the twin
of its fp32 file, the twin of its INT8 file. Medians, and the medians of the ratios within a round.

    python benchmarks/twin_step.py --models resnet18,mobilenetv2,resnet20 --repeats 15
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgad_tk.artifacts.record import Artifact
from dgad_tk.ascent.folded import folded
from dgad_tk.models import build_model
from exporters.formats import load
from exporters.onnx_read.read import read_onnx
from exporters.onnx_twin import to_torch
from exporters.onnx_write.float32 import save_onnx
from exporters.onnx_write.int8 import Int8, save_onnx_int8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,mobilenetv2,resnet20")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"one gradient step, batch {arguments.batch_size} of 3x{arguments.size}x{arguments.size}, float32, ms")
    print(
        f"{'model':<14}{'plain':>9}{'folded':>9}{'twin':>9}{'int8 twin':>11}"
        f"{'twin/folded':>13}{'twin/plain':>12}{'int8/twin':>11}{'convert s':>11}"
    )
    for name in arguments.models.split(","):
        compare(name, arguments)


def compare(name: str, arguments: argparse.Namespace) -> None:
    """One row of the table."""
    torch.manual_seed(0)
    shape = (3, arguments.size, arguments.size)
    record = Artifact(model=name, classes=[str(c) for c in range(10)], input_shape=shape, dataset="none")
    model = build_model(name, in_channels=3, classes=10)
    with torch.no_grad():  # statistics of its own, so that folding has something to fold
        model.train()(torch.rand(64, *shape))
    model.eval().requires_grad_(False)
    images = np.random.default_rng(0).random((80, *shape), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        save_onnx(model, record, fp32)
        save_onnx_int8(model, record, int8, images=images, int8=Int8(64))
        begun = time.perf_counter()
        to_torch(read_onnx(fp32))
        conversion = time.perf_counter() - begun
        modules = {"plain": model, "folded": folded(model), "twin": load(fp32).module, "int8": load(int8).module}
    x = torch.from_numpy(np.resize(images, (arguments.batch_size, *shape)))
    labels = torch.arange(len(x)) % 10
    seconds: dict[str, list[float]] = {key: [] for key in modules}
    for repeat in range(arguments.repeats + 1):
        for key, module in modules.items():
            assert module is not None
            begun = time.perf_counter()
            gradient(module, x, labels)
            if repeat:  # the first round warms up
                seconds[key].append(time.perf_counter() - begun)
    medians = [statistics.median(seconds[key]) * 1e3 for key in modules]
    ratios = [ratio(seconds, *pair) for pair in (("twin", "folded"), ("twin", "plain"), ("int8", "twin"))]
    print(
        f"{name:<14}{medians[0]:>9.1f}{medians[1]:>9.1f}{medians[2]:>9.1f}{medians[3]:>11.1f}"
        f"{ratios[0]:>13.3f}{ratios[1]:>12.3f}{ratios[2]:>11.2f}{conversion:>11.2f}"
    )


def gradient(module: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """Of the cross-entropy, with respect to the images."""
    images = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(module(images), labels), images)
    return found


def ratio(seconds: dict[str, list[float]], first: str, second: str) -> float:
    """The median of first over second within a round."""
    return statistics.median(a / b for a, b in zip(seconds[first], seconds[second], strict=True))


if __name__ == "__main__":
    main()
