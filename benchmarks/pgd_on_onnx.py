"""What white-box PGD-10 costs on an .onnx file, against the torch module it came from, BatchNorm folded in both.

Both run the same attack (`evaluators.attacks.pgd`) on the same images and count the verdict too: ONNX Runtime's for the
file, the module's own for torch. Interleaved, so that a machine that slows down slows both; the median of the ratios is
what to quote.

    python benchmarks/pgd_on_onnx.py --models resnet8,resnet20,mobilenetv2,resnet18 --repeats 7
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dgad_tk.artifacts.predictor import predictor_of_module
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.models import build_model
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.target.estimators import to_estimator
from exporters.export import export
from exporters.formats import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet8,resnet20,mobilenetv2,resnet18")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"PGD-10 and verdict, {arguments.images} images 3x{arguments.size}x{arguments.size}")
    print(f"{'model':<14}{'torch s':>10}{'onnx s':>10}{'ratio':>8}{'min':>8}{'max':>8}")
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
    images = np.random.default_rng(0).random((arguments.images, *shape), dtype=np.float32)
    labels = np.arange(arguments.images) % 10
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.safetensors", Path(folder) / "student.onnx"
        save_weights(source, model, record)
        export(source, "onnx", target)
        of_torch = predictor_of_module(load_model(source)[0], shape, format="torchscript")
        of_file = load(target)

    def seconds(predictor: object) -> float:
        estimator = to_estimator(predictor)  # type: ignore[arg-type]
        attack = ProjectedGradient(estimator, eps=8 / 255, step_size=2 / 255, batch_size=arguments.batch_size)
        begun = time.perf_counter()
        estimator.predict(attack.generate(images, labels), batch_size=arguments.batch_size)
        return time.perf_counter() - begun

    for predictor in (of_torch, of_file):
        seconds(predictor)
    pairs = [(seconds(of_torch), seconds(of_file)) for _ in range(arguments.repeats)]
    ratios = [onnx / plain for plain, onnx in pairs]
    plain, onnx = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{name:<14}{plain:>10.2f}{onnx:>10.2f}{statistics.median(ratios):>8.2f}{min(ratios):>8.2f}{max(ratios):>8.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
