"""Parts `versions`, `tests` and `digits`: what is here, the tests that need a card, and a first day's commands."""

import argparse
import os
import platform
import subprocess
import sys
import time

import torch

from card.common import ROOT, must


def versions(options: argparse.Namespace) -> None:
    import onnx
    import onnxruntime

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        device = f"{torch.cuda.get_device_name()}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        device = "no card"
    providers = ", ".join(each.removesuffix("ExecutionProvider") for each in onnxruntime.get_available_providers())
    print(
        f"{device}; {os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__} ({providers}).\n"
    )


def tests(options: argparse.Namespace) -> None:
    # Warnings of other versions of the libraries are no failures of what is tested.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
    target = str(ROOT / "tests" / "test_gpu.py")
    if options.cpu:
        command += ["--collect-only"]
    done = subprocess.run([*command, target], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    print(done.stdout, file=sys.stderr)
    print(f"`pytest -m gpu`: {done.stdout.strip().splitlines()[-1].strip('= ')}\n")
    sys.exit(done.returncode)


def digits(options: argparse.Namespace) -> None:
    """The three commands as they are on a first day, with fewer epochs."""
    epochs = "1" if options.cpu else "5"
    limit = ["--limit-train", "64"] if options.cpu else []
    folder = options.out.resolve() / "digits"
    folder.mkdir(exist_ok=True)
    run = f"run-{int(time.time())}"
    for command in (
        ["train", "--epochs", epochs, "--teacher-epochs", epochs, *limit, "--out", run, "--quiet"],
        ["export", run, "--format", "onnx"],
        ["attack", "--model", "student.onnx", "--quiet", *(["--limit", "16"] if options.cpu else [])],
    ):
        out, seconds = must(*command, folder=folder)
        print(f"    $ dgad {' '.join(command)}  # {seconds:.1f} s")
        print("".join(f"    {line}\n" for line in out.splitlines()))
