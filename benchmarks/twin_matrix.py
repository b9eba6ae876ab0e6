"""The twin of torchvision's classifiers against ONNX Runtime and against the source module, as a Markdown table.

Every net by both torch exporters and through onnxslim, and once with weights of all digits, which the exporters round
when they fold; two nets also as ONNX Runtime saves them and with a fixed batch. `Comparison` says what the columns are.

    PYTHONPATH=tests/support python benchmarks/twin_matrix.py --nets resnet18,swin_small --threads 1
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from torchvision_nets import DYNAMO, NETS, OPTIMISERS, TORCHSCRIPT, Comparison, compare, exported

TWO = ("mobilenet_v3_small", "swin_small")
COLUMNS = ("logits", "spread", "double", "single", "own", "worst", "own_worst")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--dynamo", type=opsets, default=DYNAMO, help="opsets, such as 18,23")
    parser.add_argument("--torchscript", type=opsets, default=TORCHSCRIPT)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    packages = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxslim")
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in packages), end="\n\n")
    print(f"| net | image | exporter | opset | file | {' | '.join(COLUMNS)} | seconds | ONNX nodes | twin nodes |")
    print("|---" * (8 + len(COLUMNS)) + "|")
    start = time.perf_counter()
    for name in arguments.nets.split(","):
        for row in rows(name, arguments.dynamo, arguments.torchscript):
            print(row, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def opsets(text: str) -> tuple[int, ...]:
    return tuple(int(opset) for opset in text.split(","))


def rows(name: str, by_dynamo: Sequence[int], by_torchscript: Sequence[int]) -> Iterator[str]:
    """One net's rows of the table; an optimiser gets the newest opset."""
    for dynamo in (True, False):
        for opset in by_dynamo if dynamo else by_torchscript:
            if dynamo or opset >= NETS[name].oldest:
                model = exported(name, opset, dynamo=dynamo)
                yield line(name, dynamo, opset, "as written", model, compare(name, model))
        for kind in OPTIMISERS if name in TWO else ("onnxslim",):
            with tempfile.TemporaryDirectory() as folder:
                result = OPTIMISERS[kind](model, Path(folder))
            yield line(name, dynamo, opset, kind, result, compare(name, result))
        if name in TWO:
            model = exported(name, 20, dynamo=dynamo, dynamic=False)
            yield line(name, dynamo, 20, "batch 2", model, compare(name, model, batches=(2,)))
    model = exported(name, 20, dynamo=True, exact=False)
    yield line(name, True, 20, "rounded by folding", model, compare(name, model, exact=False))


def line(name: str, dynamo: bool, opset: int, kind: str, model: onnx.ModelProto, found: Comparison) -> str:
    exporter = "dynamo" if dynamo else "TorchScript"
    figures = " | ".join(f"{getattr(found, column):.1e}" for column in COLUMNS)
    counts = f"{found.seconds:.2f} | {len(model.graph.node)} | {found.nodes}"
    return f"| {name} | {NETS[name].size} | {exporter} | {opset} | {kind} | {figures} | {counts} |"


if __name__ == "__main__":
    main()
