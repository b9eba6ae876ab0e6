"""Part `train`: DGAD into ResNet-18 for two minutes, teacher included, and what has come of it."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from card.common import must


def train(options: argparse.Namespace) -> None:
    """`dgad train` from image files to a network, then its accuracy, clean and under autoattack-fast."""
    folder = options.out.resolve() / "train"
    folder.mkdir(exist_ok=True)
    data, about = images(options, folder)
    seconds = 2.0 if options.cpu else options.train_seconds
    net = "resnet8" if options.cpu else "resnet18"
    epochs = epochs_of(options, data, seconds)
    run = f"run-{int(time.time())}"
    sets = [
        *("batch_size=256", "schedule=cyclic", "lr=0.2", "teacher_lr=0.2", "outer_precision=bf16"),
        *(f"select_every={max(epochs)}", f"max_seconds={0.6 * seconds}", "cuda_graph=true"),
    ]
    flags = ["--dataset", "imagefolder", "--data-dir", str(data), "--student", net, "--teacher-model", net]
    flags += ["--precision", "bf16", "--teacher-in-attack", "linear", "--teacher-epochs", str(epochs[0])]
    flags += ["--epochs", str(epochs[1]), *(part for each in sets for part in ("--set", each))]
    flags += ["--limit-train", "64"] if options.cpu else []
    _, whole = must("train", *flags, "--out", run, "--quiet", folder=folder)
    print(f"`dgad train {' '.join(flags)}`: {about}; {whole:.0f} s with reading the files.\n")
    print("| network | epochs | seconds of training | images/s |\n|---|---|---|---|")
    for role, place in (("teacher, `trades`", folder / run / "teacher"), ("student, `dgad`", folder / run)):
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        pace = [line["samples_per_second"] for line in lines if line["event"] == "epoch"]
        print(f"| {role} | {len(pace)} | {lines[-1]['seconds']:.0f} | {pace[-1]:,.0f} |")
    best = folder / run / "best.safetensors"
    kept = options.out / "train.safetensors"
    kept.write_bytes(best.read_bytes())
    sys.stdout.flush()
    limit = 16 if options.cpu else options.images
    attack = ["--attack", "autoattack-fast", "--limit", str(limit), "--json", "--quiet", "--output", f"results-{run}"]
    out, took = must("attack", "--model", str(best), *attack, folder=folder)
    print(f"\n{said(json.loads(out))}; {took:.0f} s.\n")


def said(results: dict[str, Any]) -> str:
    """Accuracies of the one attack, in a sentence."""
    clean, attack = results["clean"], results["attacks"][0]
    accuracy = attack["robust_accuracy"]
    return (
        f"On {clean['n']} test images: {clean['accuracy']:.1%} clean, {accuracy:.1%} under `{attack['name']}` "
        f"at eps {attack['eps']:.4g}"
    )


def images(options: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The folder to train on, and what is in it."""
    if options.data_dir:
        return options.data_dir.resolve(), f"images of {options.data_dir.name}/"
    place = folder / "digits"
    if not (place / "done").is_file():
        enlarged_digits(place)
    return place, "no --data-dir, so scikit-learn's digits, enlarged to 3x32x32: accuracies say nothing of CIFAR-10"


def enlarged_digits(place: Path) -> None:
    """scikit-learn's digits as PNG files in class folders."""
    from PIL import Image

    from dgad_tk.data import load_dataset

    digits = load_dataset("digits")
    for name, split in (("train", digits.train_and_val), ("test", digits.test)):
        for at, (pixels, label) in enumerate(zip(split.take(slice(None)), split.labels, strict=True)):
            to = place / name / digits.classes[label] / f"{at}.png"
            to.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels[0])).resize((32, 32)).convert("RGB").save(to)
    (place / "done").write_text("")


def epochs_of(options: argparse.Namespace, data: Path, seconds: float) -> tuple[int, int]:
    """Epochs of the teacher and the student for two fifths and three fifths of the time, by what `steps` measured."""
    rates = json.loads(path.read_text()) if (path := options.out / "rates.json").is_file() else {}
    count = 64 if options.cpu else sum(1 for each in (data / "train").rglob("*") if each.is_file())

    def fitting(pair: str, way: str, share: float, usual: float) -> int:
        rate = max(
            (value for name, value in rates.get(pair, {}).items() if name in (way, f"{way}, CUDA graphs")),
            default=usual,
        )
        # A tenth goes to what is no step: selection, checkpoints, the first batches.
        return max(1, int(0.9 * share * seconds * rate / count))

    if options.cpu:
        return 1, 1
    return fitting("resnet18<-", "bf16", 0.4, 4000), fitting("resnet18<-resnet18", "bf16, linear", 0.6, 3000)
