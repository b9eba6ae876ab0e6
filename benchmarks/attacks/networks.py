"""Trains the networks that `benchmarks/attacks/fast.py` compares attacks on, all beside each other.

    python benchmarks/attacks/networks.py --data-dir DIR --out FOLDER --minutes 60

DIR holds CIFAR-10 as class folders, `train/CLASS/*` and `test/CLASS/*`. FOLDER gets `acceptance/NAME` and
`tuning/NAME`, two sets with no network in common: what an attack's constants are tuned on is no evidence for it. Each
is a run folder of `dgad train`, whose `config.yaml` trains the same network again (`dgad train --config FILE`), and
there is a README of their accuracies.

Every network is one process. All of them train for some seconds first; from its speed beside the others each takes
the number of epochs that fits into the minutes, so that the cyclic learning rate ends at 0. More minutes train more
robust networks, and how many epochs it was depends on the machine. `--epochs N` sets the number instead.

The 100 classes are made of CIFAR-10: each class is cut into ten by k-means over its images' 4x4 mean colours, in whole
numbers, so that every machine finds the same. They are written beside the networks as class folders of links.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPS = {"linf": "8/255", "l2": "0.5"}
STEP = {"linf": "4/255", "l2": "0.25"}

NETWORKS: dict[str, tuple[str, str, str, str, float]] = {
    # name: student, method, norm, images; its share of the minutes
    "acceptance/resnet18-pgd-at-linf": ("resnet18", "pgd-at", "linf", "classes-10", 1.0),
    "acceptance/vgg16-trades-linf": ("vgg16", "trades", "linf", "classes-10", 1.0),
    "acceptance/wrn-16-4-pgd-at-l2": ("wrn-16-4", "pgd-at", "l2", "classes-10", 1.0),
    "acceptance/wrn-16-4-pgd-at-linf-100": ("wrn-16-4", "pgd-at", "linf", "classes-100", 1.0),
    "acceptance/wrn-16-2-trades-linf": ("wrn-16-2", "trades", "linf", "classes-10", 0.8),
    "acceptance/resnet20-pgd-at-linf": ("resnet20", "pgd-at", "linf", "classes-10", 0.6),
    "tuning/resnet20-trades-l2": ("resnet20", "trades", "l2", "classes-10", 0.6),
    "tuning/wrn-10-2-mart-linf": ("wrn-10-2", "mart", "linf", "classes-10", 0.6),
}
"""The tuning networks differ from the others in kind, method or norm."""

PROBE = 5.0
"""Seconds over which the speed is measured."""
SPARE = 12.0
"""Seconds kept for the accuracies at the end."""
PATIENCE = 0.2
"""Share of the minutes for which a process waits for the slowest before it measures its speed."""


class Enough(Exception):
    """The speed is known."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--out", type=Path, default=Path("runs/attack-networks"))
    parser.add_argument("--minutes", type=float, default=60.0, help="for all of them together")
    parser.add_argument("--epochs", type=int, help="of every network, however long that takes")
    parser.add_argument("--names", help="comma between; the default is all")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--precision", default="bf16", help="of training; the accuracies are of fp32")
    parser.add_argument("--half", action="store_true", help="round weights to fp16, to carry them at half the size")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # set for the processes that this one starts
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.names.split(",") if arguments.names else list(NETWORKS)
    if arguments.one:
        one(arguments.one, names, arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for left in arguments.out.glob(".speed-*"):
        left.unlink()
    deadline = time.time() + 60 * arguments.minutes
    # They start while the images are decoded, which takes as long as importing torch on all cores.
    command = [sys.executable, *sys.argv, "--deadline", str(deadline), "--one"]
    running = {}
    for name in names:
        log = (arguments.out / f"{name.replace('/', '-')}.log").open("w")
        running[name] = subprocess.Popen([*command, name], stdout=log, stderr=subprocess.STDOUT)
    if not prepare(arguments):
        for process in running.values():
            process.terminate()
        sys.exit("the images could not be decoded")
    failed = [name for name, process in running.items() if not ended_well(process, deadline + 2 * SPARE)]
    summary = readme(arguments.out)
    (arguments.out / "README.md").write_text(summary)
    print(summary)
    for name in failed:
        log = arguments.out / f"{name.replace('/', '-')}.log"
        print(f"{name} failed:", *log.read_text().splitlines()[-3:], sep="\n", file=sys.stderr)
    sys.exit(1 if failed else 0)


def ended_well(process: "subprocess.Popen[bytes]", until: float) -> bool:
    """Whether a process ends by itself with 0. One that is late is asked to stop; its best weights are there."""
    try:
        return process.wait(max(1.0, until - time.time())) == 0
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return False


def prepare(arguments: argparse.Namespace) -> bool:
    """Decode the images of both sets into the cache, from which the processes map them; whether that went well."""
    started = time.perf_counter()
    wanted = {NETWORKS[name][3] for name in (arguments.names.split(",") if arguments.names else NETWORKS)}
    both = [Process(target=decode, args=(arguments, name)) for name in sorted(wanted)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    print(f"images: {time.perf_counter() - started:.1f} s", flush=True)
    return all(each.exitcode == 0 for each in both)


def decode(arguments: argparse.Namespace, name: str) -> None:
    from dgad_tk.data import load_dataset

    folder = arguments.data_dir
    if name == "classes-100":
        folder = cut_into_hundred(folder, arguments.out / name)
    load_dataset("imagefolder", data_dir=folder)
    mark(arguments.out / f".speed-{name}", "decoded")


def one(name: str, names: list[str], arguments: argparse.Namespace) -> None:
    """Train one network: its speed beside the others first, then as many epochs as that allows."""
    import torch

    from dgad_tk.artifacts.runs import RunFolder
    from dgad_tk.config.training import TrainConfig
    from dgad_tk.training.train import train

    student, method, norm, images, share = NETWORKS[name]
    torch.set_num_threads(1)
    folder, out = arguments.out / name, arguments.out
    wait_for(lambda: (out / f".speed-{images}").exists(), 600)
    config: dict[str, Any] = {
        "dataset": "imagefolder",
        "data_dir": str(arguments.data_dir if images == "classes-10" else out / "classes-100"),
        "student": student,
        "method": method,
        "threat": {"norm": norm, "eps": EPS[norm], "step_size": STEP[norm], "steps": 3},
        "batch_size": arguments.batch_size,
        "limit_train": arguments.limit_train,
        "schedule": "cyclic",
        "lr": 0.02 if method == "mart" else 0.2 if student != "vgg16" else 0.1,
        "nesterov": True,
        "clip_grad": 5.0,
        "precision": arguments.precision,
        "outer_precision": arguments.precision,
        "seed": list(NETWORKS).index(name),
    }
    if not RunFolder(folder).finished():
        if arguments.epochs:
            config["epochs"] = arguments.epochs
        else:
            speed, training = measured(config, name, names, out, arguments.minutes)
            left = arguments.deadline - time.time() - SPARE
            fits = max(speed * left * share, 10 * arguments.batch_size)
            # Whole epochs of somewhat fewer images, rather than a last epoch that there is no time for.
            config["epochs"] = -(-int(fits) // training)
            config["limit_train"] = int(fits / config["epochs"])
            print(f"{speed:.0f} images/s; {config['epochs']} epochs of {config['limit_train']} images", flush=True)
        begun = time.perf_counter()
        train(TrainConfig.model_validate(config), out=folder)
        print(f"trained in {time.perf_counter() - begun:.1f} s", flush=True)
    judge(folder, config["data_dir"], norm, arguments)


def measured(config: dict[str, Any], name: str, names: list[str], out: Path, minutes: float) -> tuple[float, int]:
    """Images per second while all the others train too, and the number of images of an epoch."""
    import tempfile

    from dgad_tk.config.training import TrainConfig
    from dgad_tk.training.job import Progress
    from dgad_tk.training.train import train

    marks = {each: out / f".speed-{each.replace('/', '-')}" for each in names}
    seen: list[float] = []
    size = config["batch_size"]

    def watch(state: Progress) -> None:
        if state.step == 2 and state.epoch == 0:
            mark(marks[name], "ready")
        if not seen and (all(each.exists() for each in marks.values()) or time.time() > give_up):
            seen.append(time.time())
        elif seen:
            seen.append(time.time())
            if seen[-1] > seen[0] + PROBE:
                raise Enough(str(state.steps))

    give_up = time.time() + PATIENCE * 60 * minutes
    with tempfile.TemporaryDirectory() as aside:
        try:
            train(TrainConfig.model_validate({**config, "epochs": 10_000}), out=Path(aside) / "run", on_progress=watch)
        except Enough as found:
            return size * (len(seen) - 1) / (seen[-1] - seen[0]), size * int(str(found))
    raise AssertionError("ten thousand epochs are over")


def judge(folder: Path, data_dir: str, norm: Any, arguments: argparse.Namespace) -> None:
    """Write the accuracies on test images beside the weights: clean, and under PGD of 20 steps."""
    import torch

    from dgad_tk.artifacts.weights import load_model, save_weights
    from dgad_tk.config.threat import ThreatModel
    from dgad_tk.data import load_dataset
    from dgad_tk.draws import Draws
    from dgad_tk.training.selection import accuracies

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, artifact = load_model(folder / "best.safetensors")
    if arguments.half:
        with torch.no_grad():
            for weights in model.parameters():
                if weights.dim() > 1:
                    weights.copy_(weights.half().float())
        save_weights(folder / "best.safetensors", model, artifact)
    test = load_dataset("imagefolder", data_dir=Path(data_dir)).test.subset(arguments.test_images)
    threat = ThreatModel.model_validate({"norm": norm, "eps": EPS[norm], "step_size": EPS[norm], "steps": 20})
    clean, robust = accuracies(model.to(device), test, threat, Draws(0), device=device)
    (folder / "accuracy.json").write_text(
        json.dumps({"images": len(test), "clean": clean, "pgd20": robust, "norm": norm, "eps": EPS[norm]})
    )


def readme(out: Path) -> str:
    """A table of the networks that are there."""
    lines = [
        "| network | norm | eps | epochs | best | clean % | PGD-20 % | images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(out.glob("*/*/accuracy.json")):
        found = json.loads(path.read_text())
        records = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        ended = next((record for record in records if record["event"] == "end"), {"epoch": "?", "best_epoch": -1})
        lines.append(
            f"| {path.parent.relative_to(out)} | {found['norm']} | {found['eps']} | {ended['epoch']} "
            f"| {ended['best_epoch'] + 1} | {100 * found['clean']:.1f} | {100 * found['pgd20']:.1f} "
            f"| {found['images']} |"
        )
    return "\n".join(lines) + "\n"


def cut_into_hundred(data_dir: Path, out: Path) -> Path:
    """`out`, with ten folders of links for each class of `data_dir`: `out/train/cat-3/0007.jpg`."""
    if (out / "done").is_file():
        return out
    for name in sorted(path.name for path in (data_dir / "train").iterdir() if path.is_dir()):
        train, train_files = colours(data_dir / "train" / name)
        test, test_files = colours(data_dir / "test" / name)
        centres = whole_number_means(train, 10)
        for part, found, files in (("train", train, train_files), ("test", test, test_files)):
            for group in range(10):
                (out / part / f"{name}-{group}").mkdir(parents=True, exist_ok=True)
            for file, group in zip(files, nearest(found, centres), strict=True):
                place = out / part / f"{name}-{group}" / file.name
                # Not a hard link, which would change the file's status while another process reads it.
                if not place.is_symlink():
                    place.symlink_to(file.resolve())
    mark(out / "done", "")
    return out


def colours(folder: Path) -> tuple[NDArray[np.int64], list[Path]]:
    """Sums of the pixels of 4x4 blocks of every picture, int64 `(N, 48)`, and the files in order."""
    from PIL import Image

    files = sorted(folder.iterdir())
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).astype(np.int64)
    n, height, width, _ = pixels.shape
    return pixels.reshape(n, 4, height // 4, 4, width // 4, 3).sum(axis=(2, 4)).reshape(n, 48), files


def whole_number_means(points: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """k-means in whole numbers from evenly spaced points in the order of their brightness; 30 rounds."""
    order = np.argsort(points.sum(axis=1), kind="stable")
    centres = points[order[(2 * np.arange(k) + 1) * len(points) // (2 * k)]]
    for _ in range(30):
        group = nearest(points, centres)
        for each in range(k):
            if (group == each).any():
                centres[each] = points[group == each].sum(axis=0) // (group == each).sum()
    return centres


def nearest(points: NDArray[np.int64], centres: NDArray[np.int64]) -> NDArray[np.int64]:
    """The centre nearest to each point, the first of several."""
    found: NDArray[np.int64] = np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres]).argmin(axis=0)
    return found


def mark(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def wait_for(there: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            sys.exit("the images were not decoded in time")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
