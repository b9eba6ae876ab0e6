"""An ONNX file whose source is lost, before and after `dgad train --init`: clean accuracy and AutoAttack.

    python benchmarks/hardening.py FOLDER [--teacher RUN] [--epochs 15] [--limit 300]
    python benchmarks/hardening.py FOLDER --file theirs.onnx --data-dir DIR --mean 0.5,0.5,0.5 --std 0.2,0.2,0.2 [...]

Without --file the network is one of torch alone: three convolutions with BatchNorm, trained by cross-entropy on digits
whose pixels are normalised, exported for one image at a time, BatchNorm folded. FOLDER gets the files and both reports.
"""

import argparse
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import nn

from cli.app import run
from dgad_tk.data import load_dataset

MEAN, STD = "0.3", "0.35"


def export_theirs(path: Path) -> None:
    """Train the network and export it."""
    train = load_dataset("digits").train
    x, y = torch.from_numpy(train.take(slice(None))).float() / 255, torch.from_numpy(train.labels)
    x = (x - float(MEAN)) / float(STD)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(25):
        for part in torch.split(torch.randperm(len(x)), 64):
            loss = nn.functional.cross_entropy(net(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and what many files come from
        torch.onnx.export(net.eval(), (torch.zeros(1, 1, 8, 8),), path, dynamo=False)


def attacked(model: str, *flags: str) -> str:
    """Clean and robust accuracy in words."""
    output = StringIO()
    with redirect_stdout(output):
        assert run(["attack", "--model", model, "--attack", "autoattack", "--json", "--quiet", *flags]) == 0
    found = json.loads(output.getvalue())
    row = found["attacks"][0]
    return f"clean {found['clean']['accuracy']:.1%}, AutoAttack {row['robust_accuracy']:.1%} at {row['eps']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", default="auto", help="run or file; auto trains a resnet20 by TRADES")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--limit", type=int, default=300, help="test images to attack")
    parser.add_argument("--file", type=Path, help="an .onnx file of somebody else's")
    parser.add_argument("--data-dir", type=Path, help="its images, an image folder")
    parser.add_argument("--mean", help="that it wants subtracted from images in [0, 1], per channel")
    parser.add_argument("--std", help="that it wants the rest divided by")
    parser.add_argument("--eps", help="Linf radius of training and attack; the dataset's own by default")
    parser.add_argument("--limit-train", type=int, help="images to train on")
    options = parser.parse_args()
    for name in ("file", "data_dir"):
        if (given := getattr(options, name)) is not None:
            setattr(options, name, given.resolve())
    teacher = options.teacher if options.teacher == "auto" else str(Path(options.teacher).resolve())
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    theirs, images, mean, std = "theirs.onnx", ["--dataset", "digits"], MEAN, STD
    if options.file is None:
        export_theirs(Path(theirs))
    else:
        theirs, mean, std = str(options.file), options.mean, options.std
        images = ["--dataset", "imagefolder", "--data-dir", str(options.data_dir)]
    limit = ["--limit", str(options.limit), *(["--eps", options.eps] if options.eps else [])]
    given = [] if mean is None else ["--mean", mean, "--std", std]
    before = attacked(theirs, *images, *given, *limit, "--output", "before")
    given = [] if mean is None else ["--init-mean", mean, "--init-std", std]
    again = ["--epochs", str(options.epochs), "--set", f"lr={options.lr}", "--out", "run"]
    again += ["--set", f"threat.eps={options.eps}"] if options.eps else []
    again += ["--limit-train", str(options.limit_train)] if options.limit_train else []
    assert run(["train", "--init", theirs, *images, *given, "--teacher", teacher, *again]) == 0
    assert run(["export", "run", "--output", "hardened.onnx"]) == 0
    after = attacked("hardened.onnx", *images[2:], *limit, "--output", "after")
    print(f"\n{Path(theirs).name}: {before}\nhardened.onnx: {after}", file=sys.stdout)


if __name__ == "__main__":
    main()
